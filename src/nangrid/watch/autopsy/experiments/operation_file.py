"""Writes the failing operation's operands and a short script that calls the operation on them with torch alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from nangrid.records.atomic import write_bytes
from nangrid.records.autopsy import OPERANDS, SCRIPT
from nangrid.watch.autopsy.experiments.call import Call

LARGEST = 5_000_000
"""Bytes; larger operands are not written."""
_STORABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8, torch.bool)  # fmt: skip

_TEMPLATE = """\"\"\"{title}\"\"\"
import json
from pathlib import Path

import torch

content = Path(__file__).with_name("{operands}").read_bytes()
start = 8 + int.from_bytes(content[:8], "little")
header = json.loads(content[8:start])

def load(name, dtype):
    first, last = header[name]["data_offsets"]
    memory, shape = bytearray(content[start + first : start + last]), header[name]["shape"]
    return torch.frombuffer(memory, dtype=dtype).reshape(shape) if memory else torch.empty(shape, dtype=dtype)

given = {{{given}}}
result = {call}
print(given if result is None else result)
"""


def write_operation(directory: Path | None, call: Call, title: str) -> bool:
    """Whether the operation fails alone on the CPU with small operands; then both files are written.

    `directory`: None writes nothing. False, too, if the disk takes no more: the autopsy stands without the files.
    """
    alone = call.mapped(lambda tensor: tensor.cpu().contiguous())
    namespace = alone.func.namespace
    if namespace not in ("aten", "prims") or alone.size() > LARGEST or not alone.fails():
        return False
    tensors: dict[str, Tensor] = {}
    arguments = [argument.name for argument in alone.func._schema.arguments]
    try:
        words = [_word(value, name, tensors) for name, value in zip(arguments, alone.args, strict=False)]
        words += [f"{name}={_word(value, name, tensors)}" for name, value in alone.kwargs.items()]
    except ValueError:
        return False
    given = ", ".join(f'"{name}": load("{name}", {tensor.dtype})' for name, tensor in tensors.items())
    called = f"torch.ops.{namespace}.{str(alone.func).removeprefix(namespace + '.')}({', '.join(words)})"
    script = _TEMPLATE.format(title=title, operands=OPERANDS, given=given, call=called)
    if directory is not None:
        try:
            # no two of them may share memory
            write_bytes(directory / OPERANDS, save({name: tensor.clone() for name, tensor in tensors.items()}))
            write_bytes(directory / SCRIPT, script.encode())
        except OSError:
            return False
    return True


def _word(value: Any, name: str, tensors: dict[str, Tensor]) -> str:
    """The argument as it is written in the script; ValueError for one that cannot be written."""
    if isinstance(value, Tensor):
        if value.dtype not in _STORABLE or value.layout is not torch.strided:
            raise ValueError(name)
        tensors[name] = value
        return f'given["{name}"]'
    if isinstance(value, list | tuple):
        return f"[{', '.join(_word(item, f'{name}{place}', tensors) for place, item in enumerate(value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.device):
        return 'torch.device("cpu")'
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    raise ValueError(name)
