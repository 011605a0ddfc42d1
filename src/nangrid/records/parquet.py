"""How are a cell's tables kept? Parquet of declared columns, written whole, refused where they are others."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nangrid.records.atomic import write_bytes
from nangrid.records.errors import RecordError

if TYPE_CHECKING:
    from pyarrow import Table

Columns = Mapping[str, str]
"""Column -> Arrow type."""


def write_rows(path: Path, columns: Columns, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows atomically; a column that a row leaves out is null there."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in columns.items()])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), buffer)
    write_bytes(path, buffer.getvalue())


def read_rows(path: Path, columns: Columns) -> Table:
    """The rows in Arrow; RecordError if the file is missing, cut short or of other columns."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read(use_threads=False)  # a file is small: threads cost more
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    found = {field.name: str(field.type) for field in table.schema}
    if found != columns:
        wrong = sorted(name for name, _ in found.items() ^ columns.items())
        raise RecordError(f"{path} has other columns than this version's: {', '.join(dict.fromkeys(wrong))}.")
    return table
