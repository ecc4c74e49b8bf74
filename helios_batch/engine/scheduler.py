"""The scheduler: which tokens run next (no torch).

Steps are either prefill or decode. Waiting sequences are admitted in order as slots come free and
prefilled at once, so that the decode batch stays full; a prompt longer than one chunk lets the
others decode between its chunks. Chunks begin at multiples of the chunk size, whatever else runs,
so that a prompt is computed in the same pieces in any batch.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from helios_batch.engine.memory import StepShape
from helios_batch.engine.sequence import Sequence
from helios_batch.engine.slots import Move, Slot, SlotAllocator


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `stop - 1` of a sequence's context."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def ends_prompt(self) -> bool:
        """Whether the sequence's first new token comes out of this chunk."""
        return self.stop == len(self.sequence.context)


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """Chunks of one or more prompts."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One token for each sequence, slab by slab in slot order.

    A sequence whose prompt is not done stands in the row of its slot and is computed in vain.
    """

    slabs: tuple[int, ...]
    rows: tuple[tuple[Sequence, ...], ...]


class Scheduler:
    """Owns the sequences from `add` to `finish`."""

    def __init__(self, slots: SlotAllocator, shape: StepShape) -> None:
        self._slots = slots
        self._shape = shape
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        self._let_others_decode = False

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its needs must fit a slab."""
        self._waiting.append(sequence)

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._running)

    def next_step(self) -> PrefillStep | DecodeStep | None:
        """Admit what fits and return the next step, or None when all is done."""
        self._admit()
        decoding = len(self._running) > len(self._prefilling)
        if self._prefilling and not (self._let_others_decode and decoding):
            return self._prefill()
        self._let_others_decode = False
        return self._decode() if self._running else None

    def finish(self, sequence: Sequence) -> Move | None:
        """Release a sequence's slot; return the move by which another takes its place."""
        slot = sequence.slot
        if slot is None:
            raise ValueError(f"sequence {sequence.index} holds no slot")
        del self._running[sequence.index]
        sequence.slot = None
        move = self._slots.free(slot)
        if move is not None:
            self._running[move.owner].slot = move.target
        return move

    def requeue(self, index: int) -> None:
        """Send a running sequence, whose slot is gone, back to wait; it is prefilled again."""
        sequence = self._running.pop(index)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        sequence.restart()
        self._waiting.appendleft(sequence)

    def use(self, slots: SlotAllocator) -> None:
        """Take slots from another allocator, while no sequence holds any."""
        if self._running:
            raise ValueError(f"{len(self._running)} sequences hold slots")
        self._slots = slots

    @property
    def in_flight(self) -> tuple[Sequence, ...]:
        """Sequences that hold a slot, in the order of their admission."""
        return tuple(self._running.values())

    @property
    def unfinished(self) -> tuple[Sequence, ...]:
        """Sequences that run, then those that wait."""
        return (*self._running.values(), *self._waiting)

    def length_of(self, index: int) -> int:
        """Return how many tokens of a running sequence lie in the KV cache."""
        return self._running[index].length

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._shape.max_batch:
            sequence = self._waiting[0]
            slot: Slot | None = self._slots.allocate(sequence.index, sequence.capacity_needed)
            if slot is None:
                return
            self._waiting.popleft()
            sequence.slot = slot
            self._running[sequence.index] = sequence
            self._prefilling.append(sequence)

    def _prefill(self) -> PrefillStep:
        chunks: list[Chunk] = []
        room = self._shape.prefill_tokens
        while self._prefilling:
            sequence = self._prefilling[0]
            rest = len(sequence.context) - sequence.prefilled
            count = min(rest, self._shape.chunk_tokens)
            if chunks and count > room:
                break
            start = sequence.prefilled
            chunk = Chunk(sequence, start, start + count)
            chunks.append(chunk)
            sequence.prefilled = chunk.stop
            room -= count
            if not chunk.ends_prompt:
                self._let_others_decode = True
                break
            self._prefilling.popleft()
        return PrefillStep(tuple(chunks))

    def _decode(self) -> DecodeStep:
        slabs = tuple(self._slots.slabs_in_use)
        rows = tuple(
            tuple(self._running[owner] for owner in self._slots.owners(slab)) for slab in slabs
        )
        return DecodeStep(slabs, rows)
