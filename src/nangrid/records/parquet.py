"""Reads and writes Parquet tables with declared columns; a table with other columns is refused."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nangrid.records.atomic import write_bytes
from nangrid.records.reader import read_record_bytes, unreadable

if TYPE_CHECKING:
    from pyarrow import Table

Columns = Mapping[str, str]
"""Column -> Arrow type."""

FILE_BYTES = 256 * 2**20
"""Size of the largest table; a cell of 100,000 steps has about 10 MB."""
EXPANSION = 24
"""Snappy, with which tables are written, expands to at most 22 times its size."""


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

    content = read_record_bytes(path, FILE_BYTES)
    if content is None:
        raise unreadable(path, "it is missing")
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        _check_size(file, len(content))
        _check_columns(file.schema_arrow, columns)
        table = file.read(use_threads=False)  # a file is small: threads cost more
        table.validate(full=True)
    except (OSError, ValueError, LookupError, MemoryError, pyarrow.ArrowException) as error:
        raise unreadable(path, " ".join(str(error).split())) from error
    return table.replace_schema_metadata(None)  # pandas would take an index and types from it


def _check_size(file: Any, size: int) -> None:
    """ValueError for a table that would take far more memory than its file: repeated values compress to nothing."""
    # not the facts of a column: pyarrow 26 ends the process where those are damaged
    facts = file.metadata
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    if max(facts.num_rows, sum(group.num_rows for group in groups)) > size:
        raise ValueError(f"it has {facts.num_rows} rows in {size} bytes")
    if sum(group.total_byte_size for group in groups) > EXPANSION * size:
        raise ValueError(f"its {size} bytes expand to far more")


def _check_columns(schema: Any, columns: Columns) -> None:
    written = {field.name: str(field.type) for field in schema}
    if written != columns or len(schema) != len(columns):
        differing = sorted({name for name, _ in written.items() ^ columns.items()})
        raise ValueError(f"its columns differ from this nangrid's: {', '.join(differing)[:200]}")
