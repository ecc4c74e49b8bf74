"""Reading row ranges as a stream: row groups one at a time, only the columns needed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, groupby
from operator import itemgetter

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
        # a batch without columns would have lost its row count
        columns = columns or tuple(table.schema.names[:1])
        self._columns = list(columns)
        self.schema = pa.schema([table.schema.field(name) for name in columns])
        self._groups = [
            (file, group) for file in table.files for group in range(len(file.row_group_rows))
        ]
        sizes = [file.row_group_rows[group] for file, group in self._groups]
        self._first_rows = list(accumulate(sizes, initial=0))[:-1]
        self._stream: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._position = -1

    def read(self, start: int, stop: int) -> pa.Table:
        """Return rows `start` to `stop - 1`, with this reader's columns in order.

        Raises:
            ReadError: a page can't be read or decoded.
        """
        if start >= stop:
            return self.schema.empty_table()
        group = bisect_right(self._first_rows, start) - 1
        try:
            if not self._first_rows[group] <= self._position <= start:
                self._stream, self._rest = self._batches(group), None
                self._position = self._first_rows[group]
            self._take(start - self._position)
            return pa.Table.from_batches(self._take(stop - start), schema=self.schema)
        except (pa.ArrowException, OSError) as exc:
            self._position = -1
            raise ReadError(
                f"the input can't be read: {exc}",
                where=f"rows {start} to {stop}, from {self._groups[group][0].name} on",
                fix="check the disk or connection; if the file is damaged, replace it",
            ) from None

    def _batches(self, first: int) -> Iterator[pa.RecordBatch]:
        for file, groups in groupby(self._groups[first:], key=itemgetter(0)):
            with file.open() as parquet:
                # one row group at a time: given several, pyarrow reads ahead in all of them
                for _, group in groups:
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
