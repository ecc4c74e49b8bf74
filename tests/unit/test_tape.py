"""Choices as tokens, and the steps that score them: pure, without a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.engine.memory import StepShape
from helios_batch.engine.slots import capacity_class
from helios_batch.engine.tape import Tape, tape_steps
from helios_batch.models.choices import EncodedChoices, split
from helios_batch.records import ErrorCode, RowError

SHAPE = StepShape(chunk_tokens=16, prefill_tokens=40, max_batch=6)
CONTEXT = 64


def encoded(*choices: list[int], prefix: int = 3) -> EncodedChoices:
    return EncodedChoices(prefix, list(range(100, 100 + prefix)), choices)


@pytest.mark.parametrize(
    ("texts", "prefix", "choices"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5, 6]], [1, 2, 3], ([4], [5, 6])),
        # the prompt's last token merges with one choice: the other keeps it as its own
        ([[1, 2, 9], [1, 2, 3, 5]], [1, 2], ([9], [3, 5])),
        ([[1, 8, 9], [1, 2, 3, 5]], [1], ([8, 9], [2, 3, 5])),
        # what all choices begin with is theirs, though they share it
        ([[1, 2, 3, 7, 4], [1, 2, 3, 7, 5]], [1, 2, 3], ([7, 4], [7, 5])),
        # a choice that the tokenizer drops has a token all the same
        ([[1, 2, 3], [1, 2, 3, 5]], [1, 2], ([3], [3, 5])),
    ],
)
def test_whole_texts_are_cut_where_they_part_from_the_prompt(
    texts: list[list[int]], prefix: list[int], choices: tuple[list[int], ...]
) -> None:
    """Prefix and choice put together are the tokens of the whole text, whatever merged."""
    found = split([1, 2, 3], texts)
    assert found == EncodedChoices(3, prefix, choices)


def test_a_prompt_that_merges_away_is_an_error() -> None:
    """With no token before a choice there is nothing that its first token could follow."""
    found = split([1], [[7, 8], [1, 2]])
    assert isinstance(found, RowError)
    assert found.code is ErrorCode.EMPTY_PROMPT


def test_a_choice_that_begins_another_is_found() -> None:
    """It would always be the likelier of the two; sharing some tokens is no harm."""
    assert encoded([1, 2], [3]).shadowed() is None
    assert encoded([1, 2], [1, 3]).shadowed() is None
    assert encoded([5], [1, 2, 3], [4], [1, 2]).shadowed() == (1, 3)
    assert encoded([5], [5]).shadowed() == (1, 0)


def test_a_tape_holds_each_choice_behind_the_prefix() -> None:
    """Positions go on after the prefix in every branch; last tokens are targets only."""
    tape = Tape(0, 7, encoded([1, 2, 3], [4], [5, 6]))
    assert tape.tokens == [100, 101, 102, 1, 2, 5]
    assert tape.positions == [0, 1, 2, 3, 4, 3]
    assert tape.branches == [0, 0, 0, 1, 1, 3]
    assert tape.targets == [(2, 1, 0), (2, 4, 1), (2, 5, 2), (3, 2, 0), (4, 3, 0), (5, 6, 2)]


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 50), st.lists(st.integers(1, 40), min_size=2, max_size=5)),
        min_size=1,
        max_size=25,
    ),
    spare=st.integers(0, 300),
)
def test_every_tape_runs_to_its_end(sizes: list[tuple[int, list[int]]], spare: int) -> None:
    """Tapes run once and in order, always in the same pieces, and the limits hold."""
    tapes = [
        Tape(i, i, encoded(*([1] * length for length in lengths), prefix=prefix))
        for i, (prefix, lengths) in enumerate(sizes)
    ]
    held = max(capacity_class(len(tape)) for tape in tapes) + spare
    done: dict[int, list[tuple[int, int]]] = {tape.index: [] for tape in tapes}
    unfinished: tuple[int, int] | None = None
    for step in tape_steps(tapes, SHAPE, CONTEXT, held):
        assert [chunk.slot for chunk in step.chunks] == list(range(len(step.chunks)))
        assert len(step.chunks) <= SHAPE.max_batch
        assert len(step.chunks) * step.capacity <= held
        assert sum(chunk.stop - chunk.start for chunk in step.chunks) <= SHAPE.prefill_tokens
        if unfinished is not None:
            assert (step.chunks[0].tape.index, step.capacity) == unfinished
        for chunk in step.chunks:
            assert capacity_class(len(chunk.tape)) <= step.capacity
            assert (chunk.stop - chunk.start) * len(chunk.tape) <= SHAPE.chunk_tokens * CONTEXT
            done[chunk.tape.index].append((chunk.start, chunk.stop))
        last = step.chunks[-1]
        unfinished = None if last.ends_tape else (last.tape.index, step.capacity)
        assert last.ends_tape or len(step.chunks) == 1
    assert unfinished is None
    for tape in tapes:
        [*alone] = tape_steps([tape], SHAPE, CONTEXT, held)
        pieces = [(chunk.start, chunk.stop) for step in alone for chunk in step.chunks]
        assert done[tape.index] == pieces
        assert [0, *(stop for _, stop in pieces)] == [*(start for start, _ in pieces), len(tape)]
