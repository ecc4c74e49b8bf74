"""Finding the row that kills its process: bisection that survives its own experiments.

A shard that has lost `max_deaths` processes is under suspicion. Half of the suspected rows is
probed: run alone, its results dropped. If the process dies, the culprit is in that half, otherwise
in the other. A row that has killed a process twice on its own is quarantined, and the shard
is run without it; should that die too, the search begins anew for the next one. Where no row dies
alone (only together are they too much), the search gives up after a few rounds.

The state is written before each attempt, as the attempt may not come back to tell.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Self

ALONE = 2
"""Deaths of a row on its own before it is quarantined: one may be the machine's."""

ROUNDS = 2
"""Searches that may end without a culprit."""


@dataclass(frozen=True)
class Suspicion:
    """What is known about a shard of `rows` rows.

    `deaths_seen` of the shard's lost processes are accounted for. `first` to `last` - 1 are the
    suspected rows, none if both are 0. `strikes` counts deaths since the suspected rows last
    changed; `in_vain` searches that found nothing.
    """

    rows: int
    deaths_seen: int = 0
    first: int = 0
    last: int = 0
    strikes: int = 0
    in_vain: int = 0
    quarantined: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, text: str, rows: int) -> Self:
        """Read the state written by `to_json`; of no text, the state of a shard that never died."""
        if not text:
            return cls(rows)
        data = json.loads(text)
        return cls(**data | {"quarantined": tuple(data["quarantined"])})

    def to_json(self) -> str:
        """Return the state as text."""
        return json.dumps(asdict(self))

    @property
    def probe(self) -> range | None:
        """The rows to run alone before anything else, or None to run the shard as a whole."""
        if self.first == self.last:
            return None
        if self.last - self.first == 1:
            return range(self.first, self.last)
        return range(self.first, (self.first + self.last) // 2)

    @property
    def hopeless(self) -> bool:
        """Whether the shard dies and no row is to blame."""
        return self.in_vain >= ROUNDS

    def after_deaths(self, deaths: int, max_deaths: int) -> Suspicion:
        """Account for processes lost since; `deaths` is the count of all."""
        state = self
        for _ in range(self.deaths_seen, deaths):
            state = state._died(max_deaths)
        return replace(state, deaths_seen=deaths)

    def _died(self, max_deaths: int) -> Suspicion:
        probe = self.probe
        if probe is None:
            if self.strikes + 1 < max_deaths:
                return replace(self, strikes=self.strikes + 1)
            return replace(self, first=0, last=self.rows, strikes=0)
        if len(probe) > 1:
            return replace(self, first=probe.start, last=probe.stop, strikes=0)
        if self.last - self.first > 1:
            return replace(self, first=probe.start, last=probe.stop, strikes=1)
        if self.strikes + 1 < ALONE:
            return replace(self, strikes=self.strikes + 1)
        found = tuple(sorted({*self.quarantined, probe.start}))
        # one more death of the whole is enough to look for the next row
        return replace(self, first=0, last=0, strikes=max_deaths - 1, quarantined=found)

    def survived(self) -> Suspicion:
        """Account for a probe that came back."""
        probe = self.probe
        if probe is None:
            return self
        if probe.stop < self.last:
            return replace(self, first=probe.stop, strikes=0)
        return replace(self, first=0, last=0, strikes=0, in_vain=self.in_vain + 1)
