"""Tables for other programs: columns as Parquet, and as CSV with a header."""

import io
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from .base import Data, FileOutput


def files(name: str) -> tuple[FileOutput, FileOutput]:
    """Return the outputs of a table: `name.parquet` and `name.csv`."""
    return FileOutput(f"{name}.parquet"), FileOutput(f"{name}.csv")


def put_table(data: Data, name: str, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write the two files of a table from its columns, all of one length; equal columns make equal bytes."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    table = pa.table({column: pa.array(values) for column, values in columns.items()})
    content = io.BytesIO()
    parquet.write_table(table, content, compression="zstd")
    data.put_file(f"{name}.parquet", content.getvalue())
    content = io.BytesIO()
    csv.write_csv(table, content, csv.WriteOptions(quoting_header="none"))
    data.put_file(f"{name}.csv", content.getvalue())
