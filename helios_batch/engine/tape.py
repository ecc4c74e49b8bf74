"""A prompt and its choices as one run of tokens, and the steps that score many of them (no torch).

A tape is the prefix followed by the choices one after the other, each at the positions that follow
the prefix and each without its last token, after which nothing is to be known. A choice of one
token adds nothing to the tape. Nothing stays in the KV cache after the step in which a tape ends,
so slots are numbered anew in each step.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from helios_batch.engine.memory import StepShape
from helios_batch.engine.slots import capacity_class
from helios_batch.models.choices import EncodedChoices


class Target(NamedTuple):
    """After the token at `place` of the tape comes `token` of choice `choice`."""

    place: int
    token: int
    choice: int


@dataclass(slots=True, eq=False)
class Tape:
    """One row. `branches` has 0 for tokens of the prefix, and the choice's number from 1 on.

    `targets` are in the order of their places. The labeler adds up `scores`, the log-probability of
    each choice.
    """

    index: int
    row: int
    encoded: EncodedChoices
    tokens: list[int] = field(init=False)
    positions: list[int] = field(init=False)
    branches: list[int] = field(init=False)
    targets: list[Target] = field(init=False)
    scores: list[float] = field(init=False)

    def __post_init__(self) -> None:
        prefix, choices = self.encoded.prefix, self.encoded.choices
        shared = len(prefix)
        self.tokens, self.positions = list(prefix), list(range(shared))
        self.branches = [0] * shared
        self.targets = [Target(shared - 1, choice[0], i) for i, choice in enumerate(choices)]
        self.scores = [0.0] * len(choices)
        for index, choice in enumerate(choices):
            for offset, following in enumerate(choice[1:]):
                self.targets.append(Target(len(self.tokens), following, index))
                self.tokens.append(choice[offset])
                self.positions.append(shared + offset)
                self.branches.append(index + 1)

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class TapeChunk:
    """Tokens `start` to `stop - 1` of a tape, whose keys and values lie in slot `slot`."""

    tape: Tape
    slot: int
    start: int
    stop: int

    @property
    def ends_tape(self) -> bool:
        """Whether the tape's scores are complete after this chunk."""
        return self.stop == len(self.tape)

    @property
    def has_branches(self) -> bool:
        """Whether a token of one of several choices is in it, which must not see the others."""
        return len(self.tape.encoded.choices) > 1 and self.stop > len(self.tape.encoded.prefix)


@dataclass(frozen=True, slots=True)
class TapeStep:
    """Chunks of different tapes; `capacity` is that of each of their slots, in tokens."""

    chunks: tuple[TapeChunk, ...]
    capacity: int


class StepTargets(NamedTuple):
    """What a step scores: tokens [N] of choices, each after a row [N] of `ends`.

    `ends` are places among the step's tokens, `wanted` says whose scores are found.
    """

    ends: list[int]
    wanted: list[tuple[Tape, int]]
    rows: list[int]
    tokens: list[int]

    @classmethod
    def of(cls, step: TapeStep, without: Container[int] = ()) -> StepTargets:
        """Return what a step scores of its tapes, but of those whose indices are in `without`."""
        ends: dict[int, int] = {}  # place among the tokens -> row for the head
        found = cls([], [], [], [])
        begin = 0
        for chunk in step.chunks:
            first, begin = begin - chunk.start, begin + chunk.stop - chunk.start
            if chunk.tape.index in without:
                continue
            for place, token, choice in chunk.tape.targets:
                if chunk.start <= place < chunk.stop:
                    found.wanted.append((chunk.tape, choice))
                    found.rows.append(ends.setdefault(first + place, len(ends)))
                    found.tokens.append(token)
        found.ends.extend(ends)
        return found


def tape_steps(
    tapes: Iterable[Tape], shape: StepShape, context: int, kv_tokens: int
) -> Iterator[TapeStep]:
    """Yield the steps that run tapes in their order, each of which must fit the KV cache.

    A tape that is longer than a chunk runs alone, up to its last chunk. It is cut without regard
    to what else runs, so that it is computed in the same pieces in any batch.

    Args:
        tapes: what to run.
        shape: limits of one step.
        context: the model's context length, for which a step's memory is planned.
        kv_tokens: tokens that the KV cache holds.
    """
    chunks: list[TapeChunk] = []
    capacity, room = 0, shape.prefill_tokens
    for tape in tapes:
        *early, last = _pieces(len(tape), shape.chunk_tokens, context)
        needed = capacity_class(len(tape))
        full = (
            len(tape) > room
            or len(chunks) == shape.max_batch
            or (len(chunks) + 1) * max(capacity, needed) > kv_tokens
        )
        if chunks and (early or full):
            yield TapeStep(tuple(chunks), capacity)
            chunks, capacity, room = [], 0, shape.prefill_tokens
        for start, stop in early:
            yield TapeStep((TapeChunk(tape, 0, start, stop),), needed)
        # a tape of one piece is shorter than one of many: it never widens that one's slot
        capacity = max(capacity, needed)
        chunks.append(TapeChunk(tape, len(chunks), *last))
        room -= last[1] - last[0]
    if chunks:
        yield TapeStep(tuple(chunks), capacity)


def _pieces(length: int, chunk_tokens: int, context: int) -> list[tuple[int, int]]:
    """Cut a tape; one that is longer than the context gets smaller pieces.

    Attention scores, pieces against tape, are planned for no more than a chunk against a context.
    """
    size = max(1, min(chunk_tokens, chunk_tokens * context // length))
    return [(start, min(start + size, length)) for start in range(0, length, size)]
