"""Grids that a user may well make, and that have broken a report: 40 of them, as rows of cells.

A row has the cell's factors, and may have an `onset`, `frozen` (the step), `crashed`, `steps`, `horizon` and `loss`.
"""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

Row = dict[str, Any]

NAMES = (
    *(("time", "event"), ("status", "error"), ("mechanism", "flagged"), ("level", "cells"), ("trains", "cell_id")),
    *(
        ("factor", "seeds"),
        ("met", "rate"),
        ("lower", "pairs"),
        ("step", "first_step"),
        ("index", "f.g"),
        ("size", "base"),
    ),
)
"""Factors named like a column of a table."""


def fails_at_a1(a: Any, b: Any, seed: int) -> int | None:
    """The onset of most grids here: at once, where the first factor is at a1."""
    return 0 if a == "a1" else None


def square(
    onset: Callable[[Any, Any, int], int | None] = fails_at_a1,
    seeds: int = 1,
    a: Iterable[Any] = ("a0", "a1"),
    b: Iterable[Any] = ("b0", "b1"),
    names: tuple[str, str] = ("A", "B"),
    **fields: Any,
) -> list[Row]:
    """The cells of two factors."""
    return [
        {"factors": {names[0]: x, names[1]: y, "seed": seed}, "onset": onset(x, y, seed)} | fields
        for x, y, seed in product(a, b, range(seeds))
    ]


def with_levels(levels: Iterable[Any], guilty: Any) -> list[Row]:
    """Two factors, the first with these levels, of which one fails."""
    return square(lambda a, b, seed: 0 if a is guilty else None, a=levels)


def changed(rows: list[Row], where: Callable[[Row], bool], **fields: Any) -> list[Row]:
    """The rows, with other fields where a row fits."""
    return [row | fields if where(row) else row for row in rows]


def at_a1(row: Row) -> bool:
    """Whether the row's first factor is at a1."""
    return bool(row["factors"]["A"] == "a1")


FINE = square(lambda a, b, seed: None)
NAN = float("nan")

GRIDS: dict[str, list[Row]] = {
    "all finite": FINE,
    "all fail at step 0": square(lambda a, b, seed: 0),
    "all crashed": square(lambda a, b, seed: None, crashed=True),
    "one cell": [{"factors": {"A": "a0", "seed": 0}, "onset": 0}],
    "one crashed cell": [{"factors": {"A": "a0", "seed": 0}, "crashed": True}],
    "only seeds": [{"factors": {"seed": seed}, "onset": 0 if seed else None} for seed in range(5)],
    "equal onsets": square(lambda a, b, seed: 3 if a == "a1" else None, 3),
    "mixed levels": with_levels((1, 1.5, True, None, "x"), "x"),
    "true or a name": with_levels((True, "unsloth"), "unsloth"),
    "0 or a name": with_levels((0, "auto"), "auto"),
    "true or its text": with_levels((True, "True", False), "True"),
    "1 or true": with_levels((1, True), True),
    "1, 1.0 or 2": with_levels((1, 1.0, 2), 2),
    "nan": with_levels(("nan", 1.0), "nan"),
    "lists": with_levels((["q"], ["q", "v"]), None),
    "null": with_levels((None, "x"), "x"),
    "missing keys": [
        {"factors": {"A": a, "seed": 0} | b, "onset": fails_at_a1(a, b, 0)}
        for a, b in product(("a0", "a1"), ({}, {"B": "b1"}))
    ],
    "a missing cell": square()[:-1],
    "frozen from the start": changed(FINE, at_a1, frozen=0),
    "frozen, then non-finite": changed(FINE, at_a1, frozen=2, onset=9),
    "frozen, then crashed": changed(FINE, at_a1, frozen=2, crashed=True),
    "short cells": changed(square(), lambda row: row["factors"]["B"] == "b0", horizon=1, steps=1),
    "a short cell": [*square(seeds=3), {"factors": {"A": "a0", "B": "b0", "seed": 3}, "horizon": 2, "steps": 2}],
    "no steps": changed(square(), lambda row: row["factors"] == {"A": "a0", "B": "b0", "seed": 0}, steps=0),
    "few steps": square(horizon=3, steps=3),
    "unequal seeds": [row for row in square(seeds=4) if row["factors"]["seed"] == 0 or at_a1(row)],
    "negative losses": square(loss=-3.0),
    "losses of zero": square(loss=0.0),
    "infinite losses": square(loss=float("inf")),
    **{f"factors named {' and '.join(names)}": square(names=names) for names in NAMES},
}
