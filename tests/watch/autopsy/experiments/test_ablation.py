"""An origin is tested by zeros in its place, and an autopsy says how sure it is by fixed rules."""

from pathlib import Path

import pytest
import torch
from bare_loop import Calculation, diagnose

from nangrid.records.explain.certainty import Grade, mechanism_certainty, origin_certainty

ROW = torch.tensor([[1.0, 2.0, 3.0]])


def test_the_step_is_finite_without_its_origin(tmp_path: Path) -> None:
    autopsy = diagnose(Calculation(lambda x: (x - x.detach()).abs().log()), [ROW], tmp_path, lambda out: out.sum())
    assert autopsy.ablated is True
    assert (origin_certainty(autopsy).grade, mechanism_certainty(autopsy).grade) == (Grade.PROVEN, Grade.PROVEN)


def test_of_two_origins_each_is_shown_to_fail_by_itself(tmp_path: Path) -> None:
    """Two operations produce a NaN on their own, so that no change of one of them mends the step."""
    autopsy = diagnose(
        Calculation(lambda x: torch.acos(x * 9).sum() + torch.atanh(x * 9).sum()), [ROW], tmp_path, lambda out: out
    )
    assert (autopsy.op, autopsy.ablated, autopsy.rivals) == ("aten.acos.default", True, 1)
    assert origin_certainty(autopsy).grade == Grade.PROVEN
    assert "with zeros in place of what another operation made non-finite as well" in origin_certainty(autopsy).because
    assert mechanism_certainty(autopsy).grade == Grade.LIKELY


def test_an_operation_that_fails_once_the_origin_does_not_is_found(tmp_path: Path) -> None:
    """With a 0 in place of the number that float16 cannot hold, the sum of the others is too large for it."""
    parts = torch.tensor([6e4, 6e4, 7e4])
    autopsy = diagnose(Calculation(lambda x: (x.sum() * 0 + parts).half().sum()), [ROW], tmp_path, lambda out: out)
    assert (autopsy.op, autopsy.ablated, autopsy.rivals) == ("aten._to_copy.default", True, 1)
    assert origin_certainty(autopsy).grade == Grade.PROVEN


@pytest.mark.parametrize("place", ["batch", "parameter"])
def test_what_was_nonfinite_before_the_step_is_tested_as_well(place: str, tmp_path: Path) -> None:
    model, row = Calculation(lambda x: x), ROW.clone()
    with torch.no_grad():
        (row if place == "batch" else model.layer.weight)[0, 1] = float("nan")
    autopsy = diagnose(model, [row], tmp_path)
    assert autopsy.preexisting.startswith(place) and autopsy.ablated is True
    assert origin_certainty(autopsy).grade == Grade.PROVEN


def test_a_mechanism_that_no_change_tested_is_likely(tmp_path: Path) -> None:
    """The gradient overflows float16 where no textbook change applies."""
    model = Calculation(lambda x: x.half().float() * 1e6)
    autopsy = diagnose(model, [ROW], tmp_path, lambda out: out.sum())
    assert autopsy.mechanism == "fp16-gradient-overflow" and origin_certainty(autopsy).grade == Grade.PROVEN
    assert mechanism_certainty(autopsy).grade == Grade.LIKELY
