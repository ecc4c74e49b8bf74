"""Shards: deterministic row ranges of the whole input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows `start` to `stop - 1` of the input; published as one part.

    `digits` is the width of the number in the part's name: names sort as shards do.
    """

    index: int
    start: int
    stop: int
    digits: int = 5

    @property
    def rows(self) -> int:
        """Rows in the shard."""
        return self.stop - self.start

    @property
    def part_name(self) -> str:
        """File name of the shard's part."""
        return f"part-{self.index:0{self.digits}d}.parquet"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """All shards of a job: `rows_per_shard` rows each, the last one shorter.

    An empty input still has one empty shard, so that its output has the full schema.
    """

    rows: int
    rows_per_shard: int

    def __len__(self) -> int:
        return max(1, -(-self.rows // self.rows_per_shard))

    def __getitem__(self, index: int) -> Shard:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.rows_per_shard
        stop = min(start + self.rows_per_shard, self.rows)
        return Shard(index, start, stop, max(5, len(str(len(self) - 1))))
