"""A cell's suggestions: what cures most cells first, nothing that it has already, and new rows only if they matter."""

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from bare_loop import call
from torch import Tensor, nn

from nangrid import NonFiniteError, Watch
from nangrid.watch.autopsy.examine import Background

FIRST_NEW = 60
OLD = torch.tensor([[3, 12, 4, 5, 6], [7, 8, 9, 10, 11]])
NEW = torch.tensor([[3, 61, 4, 5, 6], [7, 8, 9, 10, 11]])
SILENT = ("dtype=silent_fp16", "init=zero", "data.bos=true", "optim=adamw_torch")


class Rows(nn.Module):
    """Embedding rows that pass through several normalisations; those of new tokens are zero."""

    def __init__(self, norms: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        self.embed, self.scale = nn.Embedding(64, 8), scale
        self.norms = nn.ModuleList(nn.RMSNorm(8, eps=1e-6) for _ in range(norms))
        nn.init.zeros_(self.embed.weight[FIRST_NEW:])

    def forward(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.embed(input_ids)
        for norm in self.norms:
            out = norm(out)
        return out.sum(-1) * self.scale


def suggestions(
    model: nn.Module, ids: Tensor, out_dir: Path, mechanism: str, levels: Collection[str] = SILENT
) -> list[str | None]:
    """The overrides that a cell's autopsy suggests, with None for advice in words."""
    watch = Watch(model, torch.optim.Adam(model.parameters(), lr=1e-3), out_dir)
    watch.inspector.background = Background(first_new_id=FIRST_NEW, levels=levels)

    def closure(batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = call(model, batch).float().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with pytest.raises(NonFiniteError) as raised:
        watch.step(closure, {"input_ids": ids})
    autopsy = raised.value.autopsy
    assert autopsy is not None and autopsy.mechanism == mechanism
    return [suggestion.override for suggestion in autopsy.suggestions]


def model_of(norms: int, dtype: torch.dtype, scale: float = 1.0) -> Rows:
    with torch.no_grad():
        return Rows(norms, scale).to(dtype)


def test_bfloat16_comes_before_other_rows(tmp_path: Path) -> None:
    """In docs/studies bf16 storage cures 21 of 21 such cells, mean rows 12 of 18."""
    tried = suggestions(model_of(3, torch.float16), NEW, tmp_path, "fp16-gradient-overflow")
    assert tried == ["dtype=bf16", "init=mean"]


def test_batch_without_new_tokens_gets_no_advice_about_their_rows(tmp_path: Path) -> None:
    model = model_of(1, torch.float16, 1e4)
    with torch.no_grad():
        model.embed.weight *= 1e-3
    assert suggestions(model, OLD, tmp_path, "fp16-gradient-overflow") == ["dtype=bf16", "dtype=fp32"]


def test_zero_rows_that_overflow_in_any_dtype(tmp_path: Path) -> None:
    model = model_of(15, torch.float32)
    with_bos = suggestions(model, NEW, tmp_path / "bos", "zero-row-norm-gradient")
    without = suggestions(model, NEW, tmp_path / "none", "zero-row-norm-gradient", ["data.bos=false"])
    assert (with_bos, without) == (["init=mean"], ["init=mean", "data.bos=true"])


@pytest.mark.parametrize(("row", "tried"), [(61, ["init=mean"]), (3, [None])])
def test_damaged_row_of_a_token(row: int, tried: list[str | None], tmp_path: Path) -> None:
    """Only the rows of new tokens are chosen by `init=`."""
    model = model_of(1, torch.float32)
    with torch.no_grad():
        model.embed.weight[row] = torch.nan
    assert suggestions(model, NEW, tmp_path, "uninitialised-parameter") == tried


def test_eps_that_vanishes_in_float16(tmp_path: Path) -> None:
    """bf16 storage cures 5 of 5 such cells, the 8-bit optimizer 8 of 9, float32 trainables 4 of 5."""
    tried = suggestions(model_of(1, torch.float16), OLD, tmp_path, "adam-eps-underflow")
    assert tried == ["dtype=bf16", "upcast=trainable", "optim=paged_adamw_8bit"]
