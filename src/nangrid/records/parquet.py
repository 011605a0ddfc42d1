"""Reads and writes Parquet tables with declared columns; a table with other columns is refused."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nangrid.records.atomic import write_bytes
from nangrid.records.reader import unreadable

if TYPE_CHECKING:
    from pyarrow import Table

Columns = Mapping[str, str]
"""Column -> Arrow type."""


def write_rows(path: Path, columns: Columns, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows atomically; columns missing from a row are null."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in columns.items()])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), buffer)
    write_bytes(path, buffer.getvalue())


def read_rows(path: Path, columns: Columns) -> Table:
    """The rows as an Arrow table; RecordError if the file is missing, cut short or has other columns."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read(use_threads=False)  # a file is small: threads cost more
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise unreadable(path, str(error)) from error
    written = {field.name: str(field.type) for field in table.schema}
    if written != columns:
        differing = sorted({name for name, _ in written.items() ^ columns.items()})
        raise unreadable(path, f"its columns differ from this nangrid's: {', '.join(differing)}")
    return table
