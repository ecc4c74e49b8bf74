"""The performance history table: what each candidate has shown at each depth (pure).

Source: HELIOS, arXiv 2504.10724, section 4. Beyond the paper, what was seen of a request on one
candidate stays beside what was seen of the same request on the others, so that the next choice can
go by the requests that are like those at hand. And what trying took is kept apart from what serving
took: candidates are tried on the same few rows, where a token is dearer than in the batches that
serve, so that the one compares with the other only by its ratios. (Fitting what a step takes by its
rows would need each candidate tried at two batch sizes.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

BINS = 10
"""Bins of confidence, of equal width, in which agreement is counted."""
_REQUESTS_KEPT = 64


@dataclass(frozen=True)
class Request:
    """One request of the job on one candidate at full depth, with all its exits observed.

    Args:
        row: of the input.
        tokens: that full depth gave.
        sure: by depth, how many of them the exit there was sure of.
        agreeing: by depth, at how many the exit there says what full depth says.
        first_sure: by depth, for how many it was the first that was sure; then for how many none.
        surprise: summed negative log-probability, in nats, of the tokens at full depth.
    """

    row: int
    tokens: int
    sure: tuple[int, ...]
    agreeing: tuple[int, ...]
    first_sure: tuple[int, ...]
    surprise: float


@dataclass
class Spent:
    """Seconds, prompts and waits for no layers included, and the tokens that came out in them."""

    seconds: float = 0.0
    tokens: int = 0

    def add(self, seconds: float, tokens: int) -> None:
        """Take another stretch."""
        self.seconds += seconds
        self.tokens += tokens


@dataclass
class Depth:
    """A depth of a candidate, and what running there took.

    Args:
        layers: loaded.
        work: floating point operations of a token there, in any unit.
        weights: bytes in memory.
        kv_per_token: bytes.
        batch: sequences that the memory budget holds; 0: it does not hold one.
        tried: what profiles took there, on the same rows as on the other candidates.
        served: what all other rows took there.
    """

    layers: int
    work: float
    weights: int
    kv_per_token: int
    batch: int
    tried: Spent = field(default_factory=Spent)
    served: Spent = field(default_factory=Spent)


@dataclass
class ModelHistory:
    """A candidate: its depths, shallow first and full depth last, and its requests.

    Args:
        tokenizer: candidates with the same one count the same tokens: only these compare by
            perplexity.
        depths: what is known of each.
        requests: the last ones that were observed.
        reliability: by depth and bin of confidence, tokens that agreed with full depth, and all.
        bytes_read: of weights, in `read_seconds`; loading a depth takes as long a byte.
    """

    tokenizer: str
    depths: list[Depth]
    requests: list[Request] = field(default_factory=list)
    reliability: list[list[tuple[int, int]]] = field(default_factory=list)
    bytes_read: int = 0
    read_seconds: float = 0.0

    def observe(
        self, requests: Iterable[Request], reliability: list[list[tuple[int, int]]]
    ) -> None:
        """Take what requests have shown; of a row that was seen before, the newer counts."""
        fresh = {request.row: request for request in requests}
        kept = [request for request in self.requests if request.row not in fresh]
        self.requests = [*kept, *fresh.values()][-_REQUESTS_KEPT:]
        if not self.reliability:
            self.reliability = [[(0, 0)] * BINS for _ in self.depths]
        self.reliability = [
            [(a + c, b + d) for (a, b), (c, d) in zip(old, new, strict=True)]
            for old, new in zip(self.reliability, reliability, strict=True)
        ]

    def tried_seconds(self, place: int) -> float:
        """Return the seconds of a token at depth number `place` in profiles: as measured there, or
        from the nearest depth that was, in proportion to the work; 0 while nothing was."""
        return self._seconds(place, [depth.tried for depth in self.depths])

    def served_seconds(self, place: int) -> float:
        """Return the same of all other rows."""
        return self._seconds(place, [depth.served for depth in self.depths])

    def _seconds(self, place: int, spent: list[Spent]) -> float:
        work = self.depths[place].work
        measured = [(d.work, s) for d, s in zip(self.depths, spent, strict=True) if s.tokens]
        if not measured:
            return 0.0
        nearest, found = min(measured, key=lambda pair: abs(pair[0] - work))
        return found.seconds / found.tokens * work / nearest

    def load_seconds(self, weights: int) -> float:
        """Return the seconds that reading so many bytes of weights takes."""
        return weights * self.read_seconds / self.bytes_read if self.bytes_read else 0.0

    def breach_share(self, place: int, rows: frozenset[int] | None = None) -> float:
        """Return the share of tokens that a depth was not sure of, over all requests or `rows`.

        Full depth has none, as nothing is deeper; without a request, another depth has 1.
        """
        if place == len(self.depths) - 1:
            return 0.0
        seen = [r for r in self.requests if rows is None or r.row in rows]
        tokens = sum(request.tokens for request in seen)
        return 1 - sum(r.sure[place] for r in seen) / tokens if tokens else 1.0

    def agreement(self, place: int) -> float:
        """Return the share of full depth's tokens that a depth says too; 0 without a request."""
        tokens = sum(request.tokens for request in self.requests)
        return sum(r.agreeing[place] for r in self.requests) / tokens if tokens else 0.0

    def exit_distribution(self) -> tuple[float, ...]:
        """Return the share of tokens by the first depth that was sure; then of those without."""
        tokens = sum(request.tokens for request in self.requests)
        counts = zip(*(request.first_sure for request in self.requests), strict=True)
        return tuple(sum(count) / tokens for count in counts) if tokens else ()

    @property
    def perplexity(self) -> float:
        """That of what it wrote at full depth; infinite without a request."""
        tokens = sum(request.tokens for request in self.requests)
        surprise = sum(request.surprise for request in self.requests)
        return math.exp(surprise / tokens) if tokens else math.inf


@dataclass
class History:
    """The table: candidates by name, in the order of the job."""

    models: dict[str, ModelHistory] = field(default_factory=dict)

    def token_seconds(self, model: str, place: int) -> float:
        """Return the seconds of a token at depth number `place` of a candidate, 0 if unknown.

        Where the candidate has served, that is what it took then. Where only others have, it is
        what the depth that has served most took, times the ratio of what the two took when they
        were tried. Before anything has served, all are compared by what trying took. That memory
        holds fewer rows of a deeper place is not counted: it looks too cheap where rows are so few
        that a step takes as long with more.
        """
        found = self.models[model]
        tried, served = found.tried_seconds(place), found.served_seconds(place)
        return served or tried * self._served_by_tried()

    def _served_by_tried(self) -> float:
        """Return how a token's time when served relates to when tried: at the depth that has served
        most, of a candidate that was tried; 1 if there is none."""
        depths = [
            (depth.served, found.tried_seconds(place))
            for found in self.models.values()
            for place, depth in enumerate(found.depths)
        ]
        known = [(served, tried) for served, tried in depths if served.tokens and tried]
        if not known:
            return 1.0
        served, tried = max(known, key=lambda pair: pair[0].tokens)
        return served.seconds / served.tokens / tried

    def rows_like(self, model: str, place: int, breaches: float) -> frozenset[int] | None:
        """Return the requests on which a depth was as unsure as it is now, or more; None if none.

        Args:
            model: the candidate that runs.
            place: its depth, by number.
            breaches: share of its tokens that it is not sure of now.
        """
        found = frozenset(
            request.row
            for request in self.models[model].requests
            if request.tokens and 1 - request.sure[place] / request.tokens >= breaches
        )
        return found or None
