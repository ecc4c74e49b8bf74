"""Reading row ranges as a stream: row groups one at a time, only the columns needed."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from helios_batch.data.source import InputTable
from helios_batch.errors import ReadError

_BATCH_ROWS = 4096


class RowReader:
    """Reads row ranges of an input, keeping its place between calls.

    Ranges that follow one another cost one pass over the input, whatever the size of its row
    groups; a range that lies elsewhere reopens the stream at its row group. Memory is bounded by
    one range and a few pages.
    """

    def __init__(self, table: InputTable, columns: tuple[str, ...]) -> None:
        self._table = table
        # a batch without columns would have lost its row count
        columns = columns or tuple(table.schema.names[:1])
        self._columns = list(columns)
        self.schema = pa.schema([table.schema.field(name) for name in columns])
        self._stream: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._position = -1

    def read(self, start: int, stop: int) -> pa.Table:
        """Return rows `start` to `stop - 1`, with this reader's columns in order.

        Raises:
            ReadError: a page can't be read or decoded.
        """
        try:
            if not self._at_or_shortly_before(start):
                self._seek(start)
            self._take(start - self._position)
            return pa.Table.from_batches(self._take(stop - start), schema=self.schema)
        except (pa.ArrowException, OSError) as exc:
            self._position = -1
            raise ReadError(
                f"the input can't be read: {exc}",
                where=f"rows {start} to {stop} of {self._table.files[0].name}"
                + (" and following files" if len(self._table.files) > 1 else ""),
                fix="check the disk or connection; if the file is damaged, replace it",
            ) from None

    def _at_or_shortly_before(self, start: int) -> bool:
        return 0 <= self._position <= start and self._group_of(start)[1] <= self._position

    def _group_of(self, row: int) -> tuple[tuple[int, int], int]:
        """Return ((file, row group), first row of that group in the table)."""
        if row >= self._table.rows:
            return (len(self._table.files), 0), self._table.rows
        file, offset = self._table.locate(row)
        first = row - offset
        for group, rows in enumerate(self._table.files[file].row_group_rows):
            if row < first + rows:
                return (file, group), first
            first += rows
        raise AssertionError("locate() returned a row beyond its file")

    def _seek(self, row: int) -> None:
        (file, group), first = self._group_of(row)
        self._stream = self._batches(file, group)
        self._rest = None
        self._position = first

    def _batches(self, first_file: int, first_group: int) -> Iterator[pa.RecordBatch]:
        for index, file in enumerate(self._table.files[first_file:]):
            groups = range(first_group if index == 0 else 0, len(file.row_group_rows))
            with file.open() as parquet:
                # one row group at a time: given several, pyarrow reads ahead in all of them
                for group in groups:
                    yield from parquet.iter_batches(
                        batch_size=_BATCH_ROWS,
                        row_groups=[group],
                        columns=self._columns,
                        use_threads=False,
                    )

    def _take(self, rows: int) -> list[pa.RecordBatch]:
        taken = []
        while rows > 0:
            batch = self._rest if self._rest is not None else next(self._stream, None)
            if batch is None:
                raise OSError("a file ends before the rows that its footer promises")
            head = batch.slice(0, rows)
            self._rest = batch.slice(rows) if len(batch) > rows else None
            taken.append(self._project(head))
            rows -= len(head)
            self._position += len(head)
        return taken

    def _project(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Put the columns in this reader's order; Parquet gives them in the file's."""
        arrays = [batch.column(batch.schema.get_field_index(name)) for name in self._columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)
