"""nangrid finds out why a fine-tuning run went NaN: which choice caused it, in which operation, and what cures it."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nangrid.records.defaults import DIAGNOSE_OUT, HORIZON, MAX_RUNS, SEEDS

if TYPE_CHECKING:
    from nangrid.diagnosis.diagnose import Diagnosis
    from nangrid.watch import Finding

__all__ = ["NonFiniteError", "Watch", "check", "diagnose"]


def __getattr__(name: str) -> Any:
    # Imported on first use, because commands that only read records must not wait for torch.
    if name in ("NonFiniteError", "Watch"):
        return getattr(importlib.import_module("nangrid.watch"), name)
    if name == "integrations":
        return importlib.import_module("nangrid.integrations")
    raise AttributeError(f"module 'nangrid' has no attribute {name!r}")


def check(model: Any, dataset: Iterable[Mapping[str, Any]], args: Any = None) -> "list[Finding]":
    """Check a run before its first step and return the findings, most severe first; nothing is trained or changed.

    `dataset` yields samples with `input_ids` and optionally `labels` and `attention_mask`. `args` are the run's
    TrainingArguments, if it has any.
    """
    from nangrid.watch import preflight
    from nangrid.watch.preflight import settings_of

    return preflight(model, dataset, settings_of(args))


def diagnose(
    make_trainer: Callable[[dict[str, Any]], Any],
    *,
    failing: Mapping[str, Any],
    reference: Mapping[str, Any],
    horizon: int = HORIZON,
    seeds: int = SEEDS,
    n_jobs: int = 1,
    threads: int = 1,
    out: str = DIAGNOSE_OUT,
    start_from: str | None = None,
    max_runs: int = MAX_RUNS,
    between: Mapping[str, Sequence[Any]] | None = None,
) -> "Diagnosis":
    """Search the levels that make a failing script fail, and the changes that cure it; print and return the verdict.

    `make_trainer` is a function at the top level of a file. It takes a dict of levels and returns an untrained
    transformers.Trainer, or it trains in its own loop with a Watch. `failing` and `reference` are two such dicts with
    the same keys: one fails, one trains. Call `diagnose` under `if __name__ == "__main__":`.

    Each run is a cell in its own process. It stops after `horizon` steps, and the script's schedule is kept. Results
    stay in `out`, and no run is repeated unless the script or a module beside it has changed. The first run of each
    combination uses the script's own seeds, the other `seeds - 1` use different ones. If seeds disagree, each
    combination runs with as many as its answer takes. After `max_runs` runs the rest is undecided. `between`: further
    levels per key, which are searched as well. `start_from`: a snapshot of the watch or a checkpoint of the Trainer,
    from which every run resumes. Raises nangrid.records.errors.InputError if `failing` trains or `reference` fails.
    """
    from nangrid.records.errors import requiring

    with requiring("nangrid.diagnose", "grid"):
        from nangrid.diagnosis.script import diagnose_own

    return diagnose_own(
        make_trainer,
        failing=failing,
        reference=reference,
        horizon=horizon,
        seeds=seeds,
        n_jobs=n_jobs,
        threads=threads,
        out=out,
        start_from=start_from,
        max_runs=max_runs,
        between=between or {},
    )
