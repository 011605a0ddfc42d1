"""The lines that end a failing run."""

import math
from typing import Any

import pytest
from autopsies import make_autopsy

from nangrid.records.autopsy import TensorRecord, TokenRecord
from nangrid.records.explain import explain, format_number


def test_an_overflow_is_explained() -> None:
    assert explain(make_autopsy()).splitlines() == [
        "origin: aten.add.Tensor in model.layers.7 (modeling_gemma3.py:416), forward",
        "    overflow",
        "  at [0, 0, 163]: self 54080, other 13184, sum 67264; largest float16: 65504",
        "  tokens: '<bos>' (id 2, position 0)",
        "  3 parameters affected: a.weight, b.weight, ...",
        "  fp16-activation-overflow: An activation passed 65504, the largest float16.",
        "    float32 and bfloat16 reach 3.4e38.",
        "  try: dtype=bf16; or use boolean masks",
    ]


def test_operands_of_a_whole_row_show_their_largest_finite_values() -> None:
    inputs = [TensorRecord("self", [2], "float32", 0.10351, 0, 4), TensorRecord("weight", [2], "float32", 2.5, 1, 0)]
    lines = explain(make_autopsy(inputs=inputs, kind="divide_by_zero", module="", source="")).splitlines()
    assert lines[:2] == [
        "origin: aten.add.Tensor, forward division by zero",
        "  largest finite operands: self 0.1035 (and 4 infinite), weight 2.5 (and 1 NaN)",
    ]


def test_a_tensor_that_was_nonfinite_before_the_step_is_the_origin() -> None:
    nothing: dict[str, Any] = {"op": "", "inputs": [], "output": None, "tokens": [], "parameters": []}
    given = make_autopsy(**nothing, preexisting="batch", evidence=["...", "batch: 5 of 16 elements non-finite"])
    assert explain(given).splitlines()[0] == (
        "origin: batch was non-finite before it was read: 5 of 16 elements non-finite"
    )
    lines = explain(make_autopsy(**nothing, reproduced=False)).splitlines()
    assert lines[0] == "origin: not found, no replay met a non-finite value"
    assert lines[-1] == "  CAUTION: no replay reproduced the original step exactly"


def test_the_first_reader_of_a_nonfinite_tensor_is_named() -> None:
    given = make_autopsy(preexisting="batch", evidence=["...", "batch: non-finite in 5 of 16 elements"], inputs=[])
    assert " ".join(explain(given).split()).startswith(
        "origin: batch was non-finite before it was read by aten.add.Tensor in model.layers.7 "
        "(modeling_gemma3.py:416): 5 of 16 elements"
    )


def test_a_number_among_the_operands_may_be_nan() -> None:
    inputs = [TensorRecord("self", [2], "float32", 1.0, 0, 0, 1.0), TensorRecord("alpha", [], "float", 0.0, 1, 0)]
    assert "at [0, 0, 163]: self 1, alpha nan" in explain(make_autopsy(inputs=inputs, kind="nonfinite_input"))


def test_equal_tokens_are_listed_once_with_their_number_of_samples() -> None:
    tokens = [TokenRecord(row, 0, 2, "<bos>", False) for row in (0, 1, 1)]
    tokens += [TokenRecord(0, position, 9, "", True) for position in range(5)]
    line = explain(make_autopsy(tokens=tokens)).replace("\n    ", " ").splitlines()
    assert (
        "  tokens: '<bos>' (id 2, position 0) in 2 samples, id 9 (position 0), id 9 (position 1), id 9 (position 2) "
        "and 2 more"
    ) in line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (65504.0, "65504"), (54080.0, "54080"), (0.0, "0"), (-1.0, "-1"), (0.10351, "0.1035"), (12345.678, "12345.7"),
        (3.4028e38, "3.403e38"), (1.25e-9, "1.25e-09"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_a_person_would(value: float, text: str) -> None:
    assert format_number(value) == text
