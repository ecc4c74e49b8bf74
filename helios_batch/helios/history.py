"""The performance history table: what each candidate has shown at each depth (pure).

Source: HELIOS, arXiv 2504.10724, section 4. Beyond the paper, what was seen of a request on one
candidate stays beside what was seen of the same request on the others, so that the next choice can
go by the requests that are like those at hand.
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
class Depth:
    """A depth of a candidate, and what running there took.

    Args:
        layers: loaded.
        work: floating point operations of a token there, in any unit.
        weights: bytes in memory.
        kv_per_token: bytes.
        batch: sequences that the memory budget holds; 0: it does not hold one.
        seconds: spent on tokens there, prompts and waits for no layers included.
        tokens: that came out in that time.
    """

    layers: int
    work: float
    weights: int
    kv_per_token: int
    batch: int
    seconds: float = 0.0
    tokens: int = 0


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

    def ran(self, place: int, seconds: float, tokens: int) -> None:
        """Take what a stretch at depth number `place` took."""
        self.depths[place].seconds += seconds
        self.depths[place].tokens += tokens

    def token_seconds(self, place: int) -> float:
        """Return the seconds of a token at a depth: measured there, or from the nearest depth that
        was, in proportion to the work; 0 while nothing was."""
        depth = self.depths[place]
        measured = [other for other in self.depths if other.tokens]
        if not measured:
            return 0.0
        nearest = min(measured, key=lambda other: abs(other.work - depth.work))
        return nearest.seconds / nearest.tokens * depth.work / nearest.work

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
