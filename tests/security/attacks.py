"""A hostile grid: what a stranger may put into the directory of a cell, one function per attack."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from nangrid.records.history import COLUMNS

SECRET = "planted-5f1e9c7a33"
MARKER = "content-of-a-file-outside"
TERMINAL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe"
HTML = "<script src='http://evil.example/x.js'></script><img src=x onerror=alert(1)>"

Attack = Callable[[Path, Path], None]
"""Gets the cell's directory and a directory outside of the grid, which no command may read or write."""

REQUESTS: dict[str, Attack] = {}
"""Attacks that no command may take levels from: replay, run and diagnose refuse the cell."""
RECORDS: dict[str, Attack] = {}
"""Attacks on result.json and its tables: report and status skip the cell, or what is damaged in it."""
SHOWN: dict[str, Attack] = {}
"""Valid records whose texts attack the reader: they are shown and do nothing."""


def attack(table: dict[str, Attack]) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        table[function.__name__] = function
        return function

    return add


def change(path: Path, *keys: str, to: Any) -> None:
    """Set one value of a JSON file; the keys lead to it."""
    whole = json.loads(path.read_text())
    value = whole
    for key in keys[:-1]:
        value = value[key]
    value[keys[-1]] = to
    path.write_text(json.dumps(whole))


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def evil_yaml(outside: Path) -> str:
    canary = outside / "canary"
    return f"hydra:\n  callbacks:\n    x:\n      _target_: pathlib.Path.touch\n      self: {canary}\n"


class Runs:
    """Pickled, it creates the canary when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def _request(name: str, *keys: str, to: Any) -> None:
    def function(cell: Path, outside: Path) -> None:
        value = str(to).replace("OUTSIDE", str(outside)) if isinstance(to, str) else to
        change(cell / "request.json", *keys, to=value)

    REQUESTS[name] = function


@attack(REQUESTS)
def level_climbs_out(cell: Path, outside: Path) -> None:
    (outside / "evil.yaml").write_text(evil_yaml(outside))
    change(cell / "request.json", "config", "dtype", "name", to=f"../../../../../../../..{outside}/evil")


_request("level_is_absolute", "config", "optim", "name", to="OUTSIDE/evil")
_request("level_is_a_list", "config", "init", "name", to=["zero", "mean"])
_request("level_is_an_object", "config", "init", "name", to={"_target_": "os.system"})
_request("level_sweeps", "config", "init", "name", to="zero,mean")
_request("level_is_empty", "config", "init", "name", to="")
_request("level_packages", "config", "init", "name", to="zero@hydra.callbacks")
_request("level_of_another_alphabet", "config", "init", "name", to="zerо")  # noqa: RUF001
_request("level_that_no_conf_has", "config", "init", "name", to="nowhere")
_request("hydra_in_the_config", "config", "hydra", to={"callbacks": {"x": {"_target_": "os.system"}}})
_request("target_in_a_group", "config", "model", "_target_", to="os.system")
_request("searchpath_as_a_key", "config", "hydra.searchpath", to=["file://OUTSIDE"])
_request("package_as_a_key", "config", "dtype@hydra.callbacks", to={"name": "bf16"})
_request("secret_by_interpolation", "config", "data", "path", to="${oc.env:WANDB_API_KEY}")
_request("secret_in_a_level", "config", "dtype", "name", to="${oc.env:WANDB_API_KEY}")
_request("secret_in_a_list", "config", "targets", "modules", to=["${oc.env:WANDB_API_KEY}"])
_request("secret_in_a_number", "config", "optim", "lr", to="${oc.decode:${oc.env:WANDB_API_KEY}}")
_request("secret_in_a_path", "config", "start_from", to="/x/${oc.env:WANDB_API_KEY}")
_request("missing_level", "config", "dtype", "storage", to="???")
_request("empty_config", "config", to={})
_request("config_is_a_list", "config", to=[])
_request("config_is_a_text", "config", to="${oc.env:WANDB_API_KEY}")
_request("group_is_a_text", "config", "model", to="tiny")
_request("seed_is_a_text", "config", "seed", to="0")
_request("seed_is_huge", "config", "seed", to=10**40)
_request("horizon_is_huge", "config", "horizon", to=2**62)
_request("horizon_is_negative", "config", "horizon", to=-1)
_request("horizon_is_true", "config", "horizon", to=True)
_request("modules_is_a_text", "config", "targets", "modules", to="q_proj")
_request("kind_is_unknown", "kind", to="os.system")
_request("overrides_are_a_text", "overrides", to="+x=1")
_request("schema_is_true", "schema", to=True)
_request("schema_is_negative", "schema", to=-(10**9))
_request("half_a_surrogate_pair", "title", to="\ud800")


@attack(REQUESTS)
def request_of_a_script(cell: Path, outside: Path) -> None:
    evil = cell / "evil.py"
    evil.write_text(f"import pathlib\npathlib.Path({str(outside / 'canary')!r}).touch()\n")
    fields = {"module": "evil", "function": "make_trainer", "file": str(evil), "levels": {"a": 1}, "repeat": 0}
    change(cell / "request.json", "config", to=fields | {"horizon": 1, "out": str(outside)})
    change(cell / "request.json", "kind", to="script")


@attack(REQUESTS)
def request_of_another_cell(cell: Path, outside: Path) -> None:
    change(cell / "request.json", "cell_id", to="../../outside")


@attack(REQUESTS)
def request_is_a_fifo(cell: Path, outside: Path) -> None:
    (cell / "request.json").unlink()
    os.mkfifo(cell / "request.json")


@attack(REQUESTS)
def request_is_deeply_nested(cell: Path, outside: Path) -> None:
    (cell / "request.json").write_text(nested(100_000))


@attack(REQUESTS)
def request_leads_outside(cell: Path, outside: Path) -> None:
    (cell / "request.json").rename(outside / "request.json")
    (cell / "request.json").symlink_to(outside / "request.json")


def _result(name: str, *keys: str, to: Any) -> None:
    RECORDS[name] = lambda cell, outside: change(cell / "result.json", *keys, to=to)


_result("levels_as_an_object", "factors", "dtype", to={"a": 1})
_result("levels_in_lists_of_lists", "factors", "dtype", to=[[1]])
_result("seed_as_a_text", "factors", "seed", to="0'; DROP TABLE")
_result("model_as_a_number", "factors", "model", to=7)
_result("factors_as_a_list", "factors", to=[])
_result("billions_of_layers", "ledger", "layers", to=10**9)
_result("layers_as_a_text", "ledger", "layers", to="ten")
_result("warnings_as_a_number", "ledger", "warnings", to=1)
_result("warnings_of_objects", "ledger", "early_warnings", to=[{}])
_result("steps_beyond_64_bits", "steps_done", to=10**30)
_result("steps_beyond_any_run", "horizon", to=2**60)
_result("negative_steps", "steps_done", to=-5)
_result("negative_clock", "clocks", "loss", to=-1)
_result("seconds_of_nothing", "seconds", "train", to="nan")
_result("seconds_without_end", "seconds", "train", to="inf")
_result("status_of_its_own", "status", to="trained")
_result("identity_of_another_cell", "cell_id", to="../../../outside")
_result("unknown_field", "__class__", to="os.system")
_result("schema_of_the_future", "schema", to=99)
_result("null_error", "error", to={})


@attack(RECORDS)
def result_is_deeply_nested(cell: Path, outside: Path) -> None:
    change(cell / "result.json", "environment", to={"x": 0})
    text = (cell / "result.json").read_text().replace('{"x": 0}', '{"x": ' + nested(900) + "}")
    (cell / "result.json").write_text(text)


@attack(RECORDS)
def result_has_an_infinite_number(cell: Path, outside: Path) -> None:
    text = (cell / "result.json").read_text()
    (cell / "result.json").write_text(text.replace('"peak_rss_bytes": 2147483648', '"peak_rss_bytes": 1e400'))


@attack(RECORDS)
def result_has_nan(cell: Path, outside: Path) -> None:
    text = (cell / "result.json").read_text()
    (cell / "result.json").write_text(text.replace('"peak_rss_bytes": 2147483648', '"peak_rss_bytes": NaN'))


@attack(RECORDS)
def result_is_a_directory(cell: Path, outside: Path) -> None:
    (cell / "result.json").unlink()
    (cell / "result.json").mkdir()


@attack(RECORDS)
def result_is_a_fifo(cell: Path, outside: Path) -> None:
    (cell / "result.json").unlink()
    os.mkfifo(cell / "result.json")


@attack(RECORDS)
def result_is_an_endless_device(cell: Path, outside: Path) -> None:
    (cell / "result.json").unlink()
    (cell / "result.json").symlink_to("/dev/zero")


@attack(RECORDS)
def result_leads_outside(cell: Path, outside: Path) -> None:
    (cell / "result.json").rename(outside / "result.json")
    (cell / "result.json").symlink_to(outside / "result.json")


@attack(RECORDS)
def result_leads_to_itself(cell: Path, outside: Path) -> None:
    (cell / "result.json").unlink()
    (cell / "result.json").symlink_to("result.json")


@attack(RECORDS)
def result_is_empty(cell: Path, outside: Path) -> None:
    (cell / "result.json").write_bytes(b"")


@attack(RECORDS)
def result_is_huge(cell: Path, outside: Path) -> None:
    with (cell / "result.json").open("ab") as file:
        file.truncate(2**40)  # sparse: takes no space on disk


@attack(RECORDS)
def result_is_a_pickle(cell: Path, outside: Path) -> None:
    (cell / "result.json").write_bytes(pickle.dumps(Runs(outside / "canary")))


def nulls(path: Path, rows: int, compression: str = "snappy") -> None:
    """A table of nulls alone, whose rows take next to no space in the file."""
    columns = {name: pyarrow.nulls(rows, pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression=compression)


@attack(SHOWN)
def history_of_millions_of_nulls(cell: Path, outside: Path) -> None:
    nulls(cell / "history.parquet", 3_000_000)


@attack(SHOWN)
def history_in_a_bomb(cell: Path, outside: Path) -> None:
    nulls(cell / "history.parquet", 16, "gzip")


@attack(SHOWN)
def history_is_a_directory(cell: Path, outside: Path) -> None:
    (cell / "history.parquet").unlink()
    (cell / "history.parquet").mkdir()


@attack(SHOWN)
def history_is_a_fifo(cell: Path, outside: Path) -> None:
    (cell / "history.parquet").unlink()
    os.mkfifo(cell / "history.parquet")


@attack(SHOWN)
def history_of_other_columns(cell: Path, outside: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({HTML: [1]}), cell / "history.parquet")


@attack(SHOWN)
def headroom_is_a_device(cell: Path, outside: Path) -> None:
    (cell / "headroom.parquet").symlink_to("/dev/zero")


@attack(SHOWN)
def autopsy_path_climbs_out(cell: Path, outside: Path) -> None:
    (outside / "autopsy.json").write_text(MARKER)
    change(cell / "result.json", "autopsy", to=f"../../../{outside.name}/autopsy.json")


@attack(SHOWN)
def autopsy_path_is_absolute(cell: Path, outside: Path) -> None:
    (outside / "autopsy.json").write_text(MARKER)
    change(cell / "result.json", "autopsy", to=str(outside / "autopsy.json"))


@attack(SHOWN)
def autopsy_path_has_a_null_byte(cell: Path, outside: Path) -> None:
    change(cell / "result.json", "autopsy", to="a\0b/autopsy.json")


@attack(SHOWN)
def autopsy_folder_leads_outside(cell: Path, outside: Path) -> None:
    (outside / "autopsy.json").write_text(MARKER)
    (cell / "frozen").symlink_to(outside)
    change(cell / "result.json", "autopsy", to="frozen/autopsy.json")


@attack(SHOWN)
def suggestion_runs_a_command(cell: Path, outside: Path) -> None:
    bad = {"advice": "try", "override": f"dtype=bf16; touch {outside}/canary"}
    change(cell / "autopsy.json", "suggestions", to=[bad])


@attack(SHOWN)
def suggestion_loads_a_yaml(cell: Path, outside: Path) -> None:
    change(cell / "autopsy.json", "suggestions", to=[{"advice": "try", "override": f"hydra.searchpath=[{outside}]"}])


@attack(SHOWN)
def autopsy_attacks_the_page(cell: Path, outside: Path) -> None:
    for key in ("op", "module", "source", "explanation", "phase", "dtype"):
        change(cell / "autopsy.json", key, to=f"$\\frac{{{HTML}{TERMINAL}")
    change(cell / "autopsy.json", "tokens", to=[{"row": 0, "position": 0, "id": 2, "text": HTML, "is_new": True}])


@attack(SHOWN)
def autopsy_of_extreme_numbers(cell: Path, outside: Path) -> None:
    operand = {"name": "x", "shape": [2**62], "dtype": "float16", "absmax": 5e-324, "n_nan": 2**62, "n_inf": -1}
    change(cell / "autopsy.json", "inputs", to=[operand | {"at": "nan"}, operand | {"absmax": 1.7e308}])
    change(cell / "autopsy.json", "dtype_max", to=1.7e308)


@attack(SHOWN)
def texts_attack_the_terminal(cell: Path, outside: Path) -> None:
    change(cell / "request.json", "title", to=TERMINAL)
    change(cell / "result.json", "overrides", to=[f"dtype={TERMINAL}", f"$(touch {outside}/canary)"])
    change(cell / "result.json", "ledger", "storage", to=HTML + TERMINAL)
    change(cell / "result.json", "ledger", "warnings", to=[TERMINAL])


@attack(SHOWN)
def overrides_compose_a_stranger(cell: Path, outside: Path) -> None:
    bad = [f"hydra.searchpath=[file://{outside}]", "+x@hydra.callbacks=evil", "dtype=../../evil", "~model"]
    change(cell / "request.json", "overrides", to=bad)
    change(cell / "result.json", "overrides", to=bad)


@attack(SHOWN)
def grid_id_attacks_the_page(cell: Path, outside: Path) -> None:
    change(cell.parents[1] / "grid.json", "grid_id", to=f"$x_{{{HTML}{TERMINAL}")


@attack(SHOWN)
def lock_is_a_fifo(cell: Path, outside: Path) -> None:
    os.mkfifo(cell / "lock")


@attack(SHOWN)
def lock_leads_outside(cell: Path, outside: Path) -> None:
    (cell / "lock").symlink_to(outside / "lock")


@attack(SHOWN)
def progress_without_end(cell: Path, outside: Path) -> None:
    (cell / "progress.json").symlink_to("/dev/zero")


@attack(SHOWN)
def progress_of_another_time(cell: Path, outside: Path) -> None:
    facts = {"pid": 1, "step": 10**18, "horizon": 1, "loss": "inf", "phase": "x", "began": "nan", "updated": 1e308}
    (cell / "progress.json").write_text(json.dumps(facts | {"peak_rss_bytes": 0}))


@attack(SHOWN)
def diagnosis_attacks_the_terminal(cell: Path, outside: Path) -> None:
    folder = cell.parents[1] / "diagnoses"
    folder.mkdir(exist_ok=True)
    record = {"failing": cell.name, "reference": TERMINAL, "lines": [TERMINAL, HTML], "schema": 2}
    (folder / "a-b.json").write_text(json.dumps(record))
    os.mkfifo(folder / "fifo.json")
    (folder / "lost.json").symlink_to("nowhere")


@attack(SHOWN)
def modules_in_the_grid(cell: Path, outside: Path) -> None:
    """Everything that a process with this working directory could import or read as its settings."""
    canary = outside / "canary"
    names = ("jupytext", "papermill", "pandas", "selectors", "multiprocessing", "IPython", "nbformat", "sitecustomize")
    for name in names:
        (cell.parents[1] / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    (cell.parents[1] / "matplotlibrc").write_text("text.usetex: True\nfigure.dpi: nonsense\n")


def evil_checkpoint(folder: Path, outside: Path) -> None:
    """A Trainer's checkpoint whose optimizer state is code."""
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Runs(outside / "canary"), protocol=2))
            archive.writestr("archive/version", "3")
            archive.writestr("archive/byteorder", "little")
