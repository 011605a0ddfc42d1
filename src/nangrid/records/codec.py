"""Encodes dataclasses as JSON values, and checks JSON values against the type annotations when decoding.

Nothing is coerced, except a whole number where a float is declared. Only fields whose default is None may be missing.
JSON has neither infinity nor NaN: in float fields they are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: Any) -> Any:
    """Dataclasses, dicts, lists and scalars, converted to plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def decode(kind: Any, value: Any, where: str = "") -> Any:
    """Convert the JSON `value` to an instance of the annotation `kind`; ValueError names the key that does not fit.

    `where` is the path of keys that leads to `value`.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else decode(_without_none(arguments), value, where)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is list and isinstance(value, list):
        return [decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: decode(arguments[1], item, _join(where, key)) for key, item in value.items()}
    return _decode_scalar(origin or kind, value, where)


def _decode_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # isinstance would let true through as an int
        raise ValueError(f"{where} is {value!r:.60}, not {kind.__name__}")
    return value


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} is {value!r:.60}, not an object")
    hints = _hints(kind)
    required = {field.name for field in dataclasses.fields(kind) if field.default is not None}
    if missing := sorted(required - value.keys()):
        raise ValueError(f"{where or 'it'} lacks {', '.join(missing)}")
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"{where or 'it'} has the unknown {', '.join(unknown)}")
    return kind(**{key: decode(hints[key], item, _join(where, key)) for key, item in value.items()})


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _without_none(arguments: tuple[Any, ...]) -> Any:
    (kind,) = (argument for argument in arguments if argument is not type(None))
    return kind
