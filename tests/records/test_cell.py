import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nangrid.records.cell import (
    CLOCKS,
    CellError,
    CellRecord,
    Onset,
    Seconds,
    Trains,
    earliest_onset,
    read_record,
    write_record,
)
from nangrid.records.codec import decode, encode
from nangrid.records.errors import InputError, RecordError

MakeRecord = Callable[..., CellRecord]

floats = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf])
steps = st.none() | st.integers(0, 10**6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
levels = st.dictionaries(st.text(), scalars | st.lists(scalars, max_size=3), max_size=3)
durations = st.floats(0, 10**9)


@st.composite
def records(draw: st.DrawFn) -> CellRecord:
    clocks = {clock: draw(steps) for clock in CLOCKS}
    onset = earliest_onset(clocks)
    status = draw(st.sampled_from(["error", "timeout", "nonfinite" if onset else "finite"]))
    return CellRecord(
        cell_id=draw(st.from_regex(r"[a-z0-9_][a-z0-9_-]{0,20}", fullmatch=True)),
        grid_id=draw(st.text()),
        overrides=draw(st.lists(st.text(), max_size=3)),
        factors=draw(levels),
        status=status,
        horizon=draw(st.integers(1, 10**6)),
        steps_done=draw(st.integers(0, 10**6)),
        censored=draw(st.booleans()),
        onset=onset,
        clocks=clocks,
        trains=Trains(draw(steps), draw(st.lists(st.text())), draw(floats), draw(floats), None),
        ledger=draw(st.dictionaries(st.text(), json_values, max_size=3)),
        environment={},
        autopsy=draw(st.none() | st.text()),
        snapshot=None,
        seconds=Seconds(draw(durations), draw(durations), 0.0),
        peak_rss_bytes=draw(st.integers(0)),
        error=draw(st.none() | st.builds(CellError, st.text(), st.text(), st.text())),
    )


@given(records())
@settings(max_examples=30, deadline=None)
def test_every_record_survives_json_with_its_nonfinite_floats(record: CellRecord) -> None:
    text = json.dumps(encode(record), allow_nan=False)
    again = decode(CellRecord, json.loads(text))
    # repr, not ==: NaN is equal to nothing
    assert repr(again) == repr(record)


def test_record_is_read_back(tmp_path: Path, make_record: MakeRecord) -> None:
    assert read_record(tmp_path) is None
    record = make_record({"gradient": 0, "loss": 1})
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_result_json_has_the_documented_keys(tmp_path: Path, make_record: MakeRecord) -> None:
    trains = Trains(0, ["lm_head"], math.inf, math.nan, -math.inf)
    write_record(tmp_path, make_record({"parameter": 0}, trains=trains))
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["schema"] == 1
    assert written["onset"] == {"step": 0, "clock": "parameter"}
    assert written["clocks"]["loss"] is None
    assert list(written["trains"].values()) == [0, ["lm_head"], "inf", "nan", "-inf"]


def test_onset_is_the_earliest_clock_of_the_earliest_step() -> None:
    clocks: dict[str, int | None] = dict.fromkeys(CLOCKS)
    assert earliest_onset(clocks) is None
    assert earliest_onset(clocks | {"optimizer_state": 2, "parameter": 2, "loss": 3}) == Onset(2, "parameter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"\(its schema is 2, newer than the 1 of this nangrid\): upgrade nangrid\.$"),
        ({"schema": 0}, r"\(its schema is 0, not 1\): run the command that wrote it again\.$"),
        ({"steps_done": "16"}, "steps_done is '16', not int"),
        ({"censored": 1}, "censored is 1, not bool"),
        ({"horizon": True}, "horizon is True, not int"),
        ({"trains": None}, "trains is None, not an object"),
        ({"onset": {"step": 0}}, "onset lacks clock"),
        ({"seconds": {"setup": "fast", "train": 1, "replay": 0}}, "seconds.setup is 'fast', not float"),
        ({"overrides": ["a", 1]}, r"overrides\[1\] is 1, not str"),
        ({"clocks": {"loss": 0}}, "clocks are loss, not loss, gradient"),
        ({"colour": "red"}, "it has the unknown colour"),
        ({"status": "fine"}, "status is 'fine'"),
        ({"status": "nonfinite"}, "status is nonfinite, but onset is None"),
        ({"onset": {"step": 3, "clock": "loss"}}, "but the clocks say None"),
    ],
)
def test_misshapen_record_is_refused_by_name(
    tmp_path: Path, make_record: MakeRecord, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(encode(make_record()) | change))
    with pytest.raises(RecordError, match=message) as caught:
        read_record(tmp_path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_missing_key_is_named(tmp_path: Path, make_record: MakeRecord) -> None:
    fields = encode(make_record())
    del fields["ledger"]
    (tmp_path / "result.json").write_text(json.dumps(fields))
    with pytest.raises(RecordError, match="lacks ledger"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\x00", b"[" * 100_000])
def test_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(RecordError, match=r"result\.json cannot be read"):
        read_record(tmp_path)


def test_truncated_record_is_refused(tmp_path: Path, make_record: MakeRecord) -> None:
    write_record(tmp_path, make_record())
    path = tmp_path / "result.json"
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError):
            read_record(tmp_path)


def test_cell_trains_only_if_finite_updated_and_with_gradients(make_record: MakeRecord) -> None:
    trains = make_record().trains
    assert make_record().trained
    assert not make_record({"loss": 3}).trained
    assert not make_record(trains=dataclasses.replace(trains, frozen_from=1)).trained
    assert not make_record(trains=dataclasses.replace(trains, without_gradient=["q_proj"])).trained


def test_steps_survived_end_before_the_onset(make_record: MakeRecord) -> None:
    assert make_record().steps_survived == 16
    assert make_record({"loss": 7, "gradient": 6}).steps_survived == 6
