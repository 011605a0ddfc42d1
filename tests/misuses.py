"""Misuses of the Python API, and what each must say."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nangrid
from nangrid import Watch
from nangrid.records.errors import InputError

REFUSED = "refused in one sentence"


def make_trainer(levels: dict[str, Any]) -> None:
    raise AssertionError("nothing is trained here")


class Maker:
    def __call__(self, levels: dict[str, Any]) -> None: ...


def _nested() -> Callable[[dict[str, Any]], None]:
    def inside(levels: dict[str, Any]) -> None: ...

    return inside


def _of_a_notebook() -> Any:
    namespace: dict[str, Any] = {"__name__": "notebook"}
    exec("def make_trainer(levels): ...", namespace)
    return namespace["make_trainer"]


def _diagnose(function: Any = make_trainer, **options: Any) -> None:
    nangrid.diagnose(function, **{"failing": {"lr": 1.0}, "reference": {"lr": 0.1}} | options)


def _sides(failing: Any, reference: Any) -> Callable[[], None]:
    return partial(_diagnose, failing=failing, reference=reference)


def _watch(model: nn.Module | None = None, optimizer: Any = None, **options: Any) -> Watch:
    model = model or nn.Linear(4, 1)
    return Watch(model, optimizer or torch.optim.SGD(model.parameters(), lr=0.1), **options)


def _step(loss: Any) -> Callable[[], None]:
    def step() -> None:
        _watch().step(lambda: loss)

    return step


def _frozen() -> nn.Module:
    return nn.Linear(4, 1).requires_grad_(False)


def _check(sample: Any) -> Callable[[], Any]:
    return partial(nangrid.check, nn.Embedding(8, 2), [sample])


def _sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(4, 1).parameters(), lr=0.1)


def _plateau() -> None:
    optimizer = _sgd()
    model = nn.Linear(4, 1)
    _watch(model, optimizer, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))


MISUSES: Mapping[str, tuple[Callable[[], Any], str]] = {
    "closure returns None": (_step(None), "returned a NoneType"),
    "closure returns a float": (_step(1.5), "returned a float"),
    "closure returns a vector": (_step(torch.ones(2)), r"shape \[2\]"),
    "closure returns a tuple": (_step((torch.ones(()), None)), "returned a tuple"),
    "closure returns a dict": (_step({"loss": torch.ones(())}), "returned a dict"),
    "closure returns an empty tensor": (_step(torch.ones(0)), r"shape \[0\]"),
    "model without trainables": (lambda: _watch(_frozen()), "nothing would be trained"),
    "model on meta": (lambda: _watch(nn.Linear(4, 1, device="meta")), "meta device"),
    "lazy model": (lambda: _watch(nn.LazyLinear(4), _sgd()), "lazy parameters"),
    "LBFGS": (lambda: _watch(m := nn.Linear(4, 1), torch.optim.LBFGS(m.parameters())), "LBFGS"),
    "a scheduler that needs a metric": (_plateau, "step it yourself"),
    "accumulate=0": (lambda: _watch(accumulate=0), "accumulate=0 is out of range"),
    "keep_every=-1": (lambda: _watch(keep_every=-1), "keep_every=-1 is out of range"),
    "check of a text": (_check("text"), "has no input_ids"),
    "check of raw text": (_check({"text": "raw"}), "has no input_ids"),
    "check of input_ids=None": (_check({"input_ids": None}), "has no input_ids"),
    "diagnose(None)": (partial(_diagnose, None), "make_trainer is a NoneType"),
    "diagnose(object)": (partial(_diagnose, Maker()), "make_trainer is a Maker"),
    "diagnose(partial)": (partial(_diagnose, partial(make_trainer)), "make_trainer is a partial"),
    "diagnose(lambda)": (partial(_diagnose, lambda levels: None), "cannot be found from another process"),
    "diagnose(nested function)": (partial(_diagnose, _nested()), "cannot be found from another process"),
    "diagnose(function of a notebook)": (partial(_diagnose, _of_a_notebook()), "cannot be found from another"),
    "diagnose(builtin)": (partial(_diagnose, print), "cannot be found from another process"),
    "seeds=0": (partial(_diagnose, seeds=0), "seeds=0 is out of range"),
    "seeds=1.5": (partial(_diagnose, seeds=1.5), "seeds=1.5 is out of range"),
    "horizon=0": (partial(_diagnose, horizon=0), "horizon=0 is out of range"),
    "horizon is a text": (partial(_diagnose, horizon="9"), "horizon='9' is out of range"),
    "horizon=1e9": (partial(_diagnose, horizon=10**9), "horizon=1000000000 is out of range"),
    "threads=0": (partial(_diagnose, threads=0), "threads=0 is out of range"),
    "threads=100000": (partial(_diagnose, threads=100_000), "threads=100000 is out of range"),
    "n_jobs=0": (partial(_diagnose, n_jobs=0), "n_jobs=0 is out of range"),
    "out=None": (partial(_diagnose, out=None), "out=None is no directory"),
    "out=''": (partial(_diagnose, out=""), "out='' is no directory"),
    "start_from nothing": (partial(_diagnose, start_from="missing"), "holds neither a snapshot nor a checkpoint"),
    "levels are a list": (_sides(["lr"], {"lr": 1}), "are no dicts"),
    "a level of one side": (_sides({"lr": 1, "eps": 0}, {"lr": 2}), "eps is given on one side only"),
    "the same levels": (_sides({"lr": 1}, {"lr": 1}), "are the same run"),
    "no levels": (_sides({}, {}), "are the same run"),
    "1 and '1'": (_sides({"n": 1}, {"n": "1"}), "n=1 reads the same on both sides"),
    "True and 'true'": (_sides({"x": True}, {"x": "true"}), "reads the same on both sides"),
    "a level that is a list": (_sides({"lr": [1]}, {"lr": [2]}), "lr=.* is a list"),
    "a level with a dot": (_sides({"a.b": 1}, {"a.b": 2}), "cannot name a level"),
    "a level that is no name": (_sides({"a b": 1}, {"a b": 2}), "cannot name a level"),
    "a level called seed": (_sides({"seed": 1}, {"seed": 2}), "cannot name a level"),
}


def outcome(misuse: Callable[[], Any], folder: Path) -> tuple[str, str]:
    """What a misuse led to, and what it said; `folder` is empty, and the working directory."""
    try:
        misuse()
    except InputError as error:
        if list(folder.iterdir()):
            return "refused, but wrote files", str(error)
        return (REFUSED if len(str(error).splitlines()) == 1 else "refused in several lines"), str(error)
    except Exception as error:
        return "another exception", repr(error)
    return "accepted", ""
