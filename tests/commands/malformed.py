"""Malformed command lines of every command, and what became of one."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nangrid.cell.bounds import BOUNDS, FINITE
from nangrid.grid.local import LocalExecutor

REFUSED = "refused in one sentence"
GROUPS = ("model", "quant", "dtype", "vocab", "init", "targets", "checkpointing", "optim", "upcast", "data", "tracker")
TINY = ("model=tiny", "tracker=none")

Line = tuple[str, tuple[str, ...]]
"""A command and its arguments."""


def _numbers() -> Iterator[str]:
    for key, (lowest, highest) in BOUNDS.items():
        yield from (f"{key}=", f"{key}=abc", f"{key}=[1]", f"{key}={lowest - 1:.0f}", f"{key}=nan")
        if highest != FINITE:
            yield f"{key}={int(highest) + 1}"
        else:
            yield f"{key}=inf"


def _groups() -> Iterator[str]:
    for group in GROUPS:
        yield from (f"{group}=nope", f"{group}=null", f"{group}.nope=1")


MISSPELT = [
    "horizn=3",
    "sed=1",
    "optm=sgd",
    "optim.learning_rate=1",
    "Dtype=bf16",
    "resum=errored",
    "thread=2",
    "ouput=x",
]
WRONG = [
    "resume=maybe",
    "dry_run=perhaps",
    "data.bos=7x",
    "data.packing=sometimes",
    "model.attn=flash9",
    "quant.double=2.5",
    "dtype.storage=fp8",
    "dtype.autocast=bf8",
    "data.labels=none_of_them",
    "data.padding_side=top",
    "tracker.mode=loud",
    "targets.dropout=1",
    "targets.dropout=-0.1",
    "targets.modules=[]",
    "targets.modules=[nope]",
    'targets.modules=["("]',
    "targets.modules=q_proj",
    "optim.lr=1e400",
]
SYNTAX = [
    "=",
    "dtype",
    "dtype==bf16",
    "+dtype=bf16",
    "~nope",
    "dtype=bf16,fp16",
    "seed=range(0,9)",
    "a b",
    "seed='",
    "x=[1",
]
TOGETHER = [
    ("data=glossary", "vocab=none"),
    ("vocab=none", "vocab.size=4"),
    ("model=gemma3-270m", "model.layers=2"),
    ("model=hub",),
    ("data=jsonl",),
    ("data=hub",),
    ("data=pydoc", "data.template=x.jinja"),
    ("dtype=amp_fp16",),
    ("data=jsonl", "data.path=missing.jsonl"),
    ("data=jsonl", "data.path=/"),
    ("start_from=missing",),
    ("start_from=",),
    ("start_from=/dev/null",),
    ("out=",),
    ("out=/dev/null/grid",),
    (f"out={'x' * 300}",),
    ("out=/proc/grid",),
    ("+experiment=smoke",),
    ("+experiment=nope",),
    ("experiment=smoke",),
    ("hydra/launcher=joblib", "-m"),
    ("-m", "hydra.launcher.n_jobs=0"),
    ("-m", "hydra.launcher.n_jobs=many"),
    ("-m", "hydra.launcher.timeout_s=-1"),
    ("-m", "seed=range(0,1000000)"),
    ("-m", "seed=range(0,1000000)", "horizon=range(1,1000000)"),
    ("-m", "out=a,b"),
    ("-m", "seed="),
    ("-m", "optim.lr=interval(0,1)"),
    ("model.layers=1e9",),
    ("--config-path=/",),
    ("start_from=/dev/zero",),
    ("--nope",),
    ("--horizon", "3"),
    ("--run", "--multirun"),
    (f"{'x' * 300}=1",),
    (f"dtype={'x' * 300}",),
    ("seed=${nope}",),
    ("out=${oc.env:NO_SUCH_VARIABLE}",),
]
REFERENCE = ("--reference", "init=mean")
DIAGNOSE = [
    (),
    ("--failing", "init=zero"),
    REFERENCE,
    ("--failing", "init=zero", "--reference", "init=zero"),
    ("--failing", "nope=1", *REFERENCE),
    ("--failing", "init=nope", *REFERENCE),
    ("--failing", "seed=1", "--reference", "seed=2"),
    ("--failing", "horizon=2", "--reference", "horizon=4"),
    ("--failing", "init=zero", "--reference", "init=mean", "out=elsewhere"),
    ("--failing", "init=zero", "threads=2", *REFERENCE),
    ("--failing", "tracker=none", "--reference", "tracker=wandb"),
    ("init=zero", "--failing", "init=zero", *REFERENCE),
    ("horizon=0", "--failing", "init=zero", *REFERENCE),
    ("horizon=many", "--failing", "init=zero", *REFERENCE),
    ("horizon=99999999999999999999", "--failing", "init=zero", *REFERENCE),
    ("seed=-1", "--failing", "init=zero", *REFERENCE),
    ("seed=99999999999", "--failing", "init=zero", *REFERENCE),
    ("--failing", "init=zero", *REFERENCE, "--seeds", "0"),
    ("--failing", "init=zero", *REFERENCE, "--seeds", "x"),
    ("--failing", "init=zero", *REFERENCE, "--n-jobs", "0"),
    ("--failing", "init=zero", *REFERENCE, "--n-jobs", "-3"),
    ("start_from=missing", *REFERENCE),
    ("out=", "--failing", "init=zero", *REFERENCE),
    ("threads=0", "--failing", "init=zero", *REFERENCE),
]
PATHS = [(), ("missing",), ("/dev/null",), ("",), ("x" * 300,), ("/proc",), ("a", "b", "c"), ("--nope",)]
OTHERS: list[Line] = [
    *(("report", paths) for paths in PATHS),
    *(("status", paths) for paths in PATHS),
    *(("replay", paths) for paths in PATHS),
    *(("why", paths) for paths in PATHS),
    ("why", ("missing", "--json", "--markdown")),
    ("report", ("missing", "--hypotheses", "nowhere")),
    ("report", ("--reference", "dtype=bf16")),
    ("replay", ("missing", "hydra.verbose=true")),
    ("replay", ("missing", "dtype=nope")),
    ("status", ("missing", "--follow")),
    ("check", ("horizn=3",)),
    ("check", ("dtype=nope",)),
    ("check", ("init=null",)),
    ("check", ("vocab.size=0",)),
    ("check", ("--nope",)),
    ("check", ("data=jsonl",)),
    ("check", ("dtype=bf16,fp16",)),
    ("check", ("hydra.verbose=true", "seed=x")),
    ("check", ("out=",)),
]
LINES: list[Line] = [
    *(("run", (*TINY, override)) for override in (*_numbers(), *_groups(), *MISSPELT, *WRONG, *SYNTAX)),
    *(("run", (*TINY, *overrides)) for overrides in TOGETHER),
    *(("diagnose", (*TINY, *arguments)) for arguments in DIAGNOSE),
    *OTHERS,
]


class _AcceptedError(BaseException):
    """The line was taken for a good one: something would be trained or written."""


def _accepted(*_: Any, **__: Any) -> None:
    raise _AcceptedError


def outcome(line: Line, folder: Path) -> tuple[str, str]:
    """What a command did, and what it printed; `folder` is empty, and the command's working directory."""
    command, arguments = line
    printed, before = io.StringIO(), Path.cwd()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stderr(printed),
        contextlib.redirect_stdout(printed),
    ):
        patch.setattr(LocalExecutor, "warm_up", lambda self: None)
        patch.setattr(LocalExecutor, "run", _accepted)
        os.chdir(folder)
        try:
            code = _run(command, arguments)
        except _AcceptedError:
            return "accepted", printed.getvalue()
        except Exception as error:
            return "traceback", repr(error)
        finally:
            os.chdir(before)
    return _judged(code, printed.getvalue(), folder), printed.getvalue()


def _run(command: str, arguments: Sequence[str]) -> int:
    try:
        code: int = import_module(f"nangrid.commands.{command}").main(list(arguments))
    except SystemExit as ended:  # argparse
        return int(ended.code or 0)
    return code


def _judged(code: int, printed: str, folder: Path) -> str:
    if code != 2:
        return f"exit code {code}"
    if list(folder.iterdir()):
        return "refused, but wrote files"
    lines = [line for line in printed.splitlines() if not line.startswith(("usage: ", "  "))]
    return REFUSED if len(lines) == 1 and len(printed) < 1500 else f"refused in {len(lines)} lines"
