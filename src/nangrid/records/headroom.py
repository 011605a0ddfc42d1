"""How large did activations and gradients become in a cell? `headroom.parquet`, a row a step, module and kind."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nangrid.records.atomic import write_bytes
from nangrid.records.errors import RecordError

if TYPE_CHECKING:
    from pandas import DataFrame

HEADROOM = "headroom.parquet"

COLUMNS = {
    "step": "int64",
    "order": "int64",
    "module": "string",
    "kind": "string",
    "absmax": "double",
    "row": "int64",
    "position": "int64",
    "token": "int64",
    "text": "string",
}
"""Column -> Arrow type. `order` is that of the forward pass; row, position and token are -1 where not known."""


def write_headroom(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all looks of a cell, atomically."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), buffer)
    write_bytes(directory / HEADROOM, buffer.getvalue())


def read_headroom(directory: Path) -> DataFrame | None:
    """What was seen; None for a cell that did not look, RecordError for a file that cannot be trusted."""
    import pyarrow
    import pyarrow.parquet

    path = directory / HEADROOM
    if not path.exists():
        return None
    try:
        table = pyarrow.parquet.ParquetFile(path).read(use_threads=False)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if {field.name: str(field.type) for field in table.schema} != COLUMNS:
        raise RecordError(f"{path} has other columns than this version's.")
    frame: DataFrame = table.to_pandas()
    return frame
