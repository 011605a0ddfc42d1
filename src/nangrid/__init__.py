"""nangrid: what made a fine-tuning run go NaN, where the first non-finite number arose, what cures it."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nangrid.diagnosis.diagnose import Diagnosis
    from nangrid.watch import Finding

__all__ = ["NonFiniteError", "Watch", "check", "diagnose"]


def __getattr__(name: str) -> Any:
    # Commands that only read records must not wait for torch.
    if name in ("NonFiniteError", "Watch"):
        from nangrid import watch

        return getattr(watch, name)
    raise AttributeError(f"module 'nangrid' has no attribute {name!r}")


def check(model: Any, dataset: Iterable[Mapping[str, Any]], args: Any = None) -> "list[Finding]":
    """What is wrong with a run before its first step, the gravest first; nothing is trained or changed.

    `dataset`: samples of `input_ids` and maybe `labels` and `attention_mask`. `args`: its TrainingArguments, if any.
    """
    from nangrid.watch import preflight
    from nangrid.watch.preflight import settings_of

    return preflight(model, dataset, settings_of(args))


def diagnose(
    make_trainer: Callable[[dict[str, Any]], Any],
    *,
    failing: Mapping[str, Any],
    reference: Mapping[str, Any],
    horizon: int = 16,
    seeds: int = 3,
    n_jobs: int = 1,
    threads: int = 1,
    out: str = "outputs/diagnose",
    start_from: str | None = None,
) -> "Diagnosis":
    """Which of the levels that tell a failing run from a training one make it fail, and which changes cure it?

    `make_trainer`: a function at the top level of a file, which builds a transformers.Trainer (not trained) from a
    dict of levels, or trains there and then in a loop of its own with a Watch, which puts its records into the cell's
    directory and ends the loop. `failing` and `reference` are two such dicts with the same keys. Each run is a cell in
    a process of its own, kept in `out` and never run twice; it is stopped after `horizon` steps, its schedule is the
    script's. Runs with the script's own seeds, then `seeds - 1` more with others. `start_from`: a snapshot of the
    watch or a checkpoint of the Trainer, which all runs go on from. Prints the verdict, and returns it. Call it under
    `if __name__ == "__main__":`. nangrid.records.errors.InputError for end points that are none.
    """
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
    )
