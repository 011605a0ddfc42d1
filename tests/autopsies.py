"""An autopsy as a failing cell writes it, for tests of what is said of one."""

from dataclasses import replace
from typing import Any

from nangrid.records.autopsy import Autopsy, OutputRecord, Suggestion, TensorRecord, TokenRecord


def make_autopsy(**changes: Any) -> Autopsy:
    shape = [2, 64, 640]
    operands = [("self", 54080.0), ("other", 13184.0)]
    autopsy = Autopsy(
        step=0, clock="loss", phase="forward", kind="overflow", op="aten.add.Tensor", module="model.layers.7",
        source="modeling_gemma3.py:416", node="", micro_batch=0, dtype="float16", dtype_max=65504.0,
        inputs=[TensorRecord(name, shape, "float16", at, 0, 0, at) for name, at in operands],
        output=OutputRecord(shape, "float16", 0, 2, [0, 0, 163]), path=["aten.add.Tensor"],
        tokens=[TokenRecord(0, 0, 2, "<bos>", False)], parameters=["a.weight", "b.weight", "c.weight"],
        mechanism="fp16-activation-overflow",
        explanation="An activation passed 65504, the largest float16. float32 and bfloat16 reach 3.4e38.", evidence=[],
        suggestions=[Suggestion("dtype=bf16", "dtype=bf16"), Suggestion("use boolean masks")], reproduced=True,
        untrained=True,
    )  # fmt: skip
    return replace(autopsy, **changes)
