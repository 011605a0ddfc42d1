"""Turns Hydra's errors into one sentence: what is wrong with the command line, and what to type instead."""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any, get_args, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import ValidationError
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from nangrid.cell.config import Config
from nangrid.records.errors import InputError
from nangrid.records.safety.command import as_typed

OTHER_KEYS = ("experiment", "hydra.launcher.n_jobs", "hydra.launcher.timeout_s")

TAKES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

HYPOTHESES = "hypotheses is not a group of a run: python -m src.report GRID_DIR --hypotheses DIRECTORY tests them."
REWORDED = {
    r"Could not override 'hypotheses'\.|Key 'hypotheses' not in 'Config'": HYPOTHESES,
    r"Could not override '(\S+)'\. No match in the defaults list": (
        "{0} is not a group of every cell: type +{0}=... with a plus."
    ),
    r"Could not append to config\. An item is already at '(\S+)'": (
        "+{0}=... adds a key that exists already: type {0}=... without the plus."
    ),
    r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'": (
        "{0} gives several cells: add -m, as in python -m src.run -m {0}."
    ),
    r"does not support sweep type : (\w+)_SWEEP": (
        "A sweep takes lists of levels such as optim.lr=1e-4,1e-3, choice(...), range(...) and glob(...) only."
    ),
    r"Could not delete from config\. '(\S+)' does not exist": ("~{0} deletes a key that does not exist: leave it out."),
    r"Interpolation key '(\S+)' not found": (
        "${{{0}}} refers to a key that does not exist: see --cfg job for all keys."
    ),
    r"Config group override must be a string or a list": (
        "A group takes the name of a level, and null is not one: type group=level, see --help for the levels."
    ),
}
"""Pattern in Hydra's wording -> our sentence, with what the parentheses matched. The first match counts."""


def refusal_message(error: BaseException) -> str | None:
    """One sentence about a mistake in the input; None for a bug, which keeps its traceback."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        if sentence := _sentence(cause):
            return sentence
    if isinstance(error, HydraException | OmegaConfBaseException) or _raised_by_hydra(error):
        return _generic(error)
    return None


def config_keys() -> list[str]:
    """Every key of the command line except Hydra's own, groups included."""
    keys = []
    for key, kind in get_type_hints(Config).items():
        keys.append(key)
        if dataclasses.is_dataclass(kind):
            keys += [f"{key}.{field.name}" for field in dataclasses.fields(kind)]
    return keys


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_level(error.missing_cfg_file, list(error.options or []))
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read: type key=value, with quotes around a value that has special characters."
        )
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and error.full_key:
        return _unknown_key(str(error.full_key))
    if isinstance(error, ValidationError) and error.full_key:
        return _wrong_type(str(error.full_key), str(error))
    for pattern, sentence in REWORDED.items():
        if match := re.search(pattern, str(error)):
            return as_typed(sentence.format(*match.groups()))
    return None


def _unknown_level(missing: str, levels: list[str]) -> str:
    group, _, level = missing.rpartition("/")
    if not group:
        return f"The directory of --config-path holds no {level}.yaml: leave the option out, or copy conf/ there."
    if missing == "hydra/launcher/submitit_slurm":
        return "hydra/launcher=submitit_slurm needs hydra-submitit-launcher: pip install 'nangrid[slurm]'."
    plus = "+" if group == "experiment" else ""
    guess = difflib.get_close_matches(level, levels, 1)
    close = f" (did you mean {plus}{group}={guess[0]}?)" if guess else ""
    return f"{plus}{group}={level} is not a level: choose one of {', '.join(levels)}{close}."


def _unknown_key(key: str) -> str:
    guess = difflib.get_close_matches(key, [*config_keys(), *OTHER_KEYS], 1)
    instead = f"did you mean {guess[0]}?" if guess else "see --help and --cfg job for all keys."
    return f"{key} is not a key: {instead}"


def _wrong_type(key: str, message: str) -> str:
    match = re.match(r"Value '(.*)' (?:of type|is not)", message)
    what = f"{key}={match[1]} does not fit" if match else f"The value of {key} does not fit"
    return f"{what}: {key} takes {_takes(key)}."


def _takes(key: str) -> str:
    kind: Any = Config
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    if kind == list[str]:
        return "a list such as [q_proj,v_proj]"
    kind = next((part for part in get_args(kind) if part in TAKES), kind)  # of `int | None`, int
    return TAKES.get(kind, "another kind of value")


def _raised_by_hydra(error: BaseException) -> bool:
    """Whether Hydra raised it: it uses plain ValueErrors too, for instance for `--run --multirun`."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return isinstance(error, ValueError) and module.split(".")[0] in ("hydra", "omegaconf")


def _generic(error: BaseException) -> str:
    """Hydra's own words in one line, without OmegaConf's table of keys and types."""
    lines = [line.strip() for line in str(error).splitlines()]
    words = [line for line in lines if line and not re.match(r"(full_key|reference_type|object_type)[:=]", line)]
    where = f"{error.full_key}: " if isinstance(error, OmegaConfBaseException) and error.full_key else ""
    return where + " ".join(words)
