"""The scheduler, driven without a model: everything runs, once, within its limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helios_batch.engine.memory import StepShape
from helios_batch.engine.scheduler import PrefillStep, Scheduler
from helios_batch.engine.sequence import Sequence, cut_at_stop
from helios_batch.engine.slots import GRANULE, SlotAllocator, capacity_class
from helios_batch.records import FinishReason
from helios_batch.spec import SamplingSpec

SHAPE = StepShape(chunk_tokens=16, prefill_tokens=40, max_batch=6)


def sequence(index: int, prompt: int, new: int) -> Sequence:
    return Sequence(index, index, [1] * prompt, SamplingSpec(), new, frozenset(), None)


@given(
    slabs=st.integers(1, 4),
    sizes=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 12)), min_size=1, max_size=25),
)
def test_every_sequence_runs_to_its_end(slabs: int, sizes: list[tuple[int, int]]) -> None:
    """Prompts are prefilled once and in order, each gets its tokens, and the limits hold."""
    longest = max(capacity_class(prompt + new) for prompt, new in sizes)
    scheduler = Scheduler(SlotAllocator(slabs, longest + GRANULE), SHAPE)
    sequences = [sequence(i, prompt, new) for i, (prompt, new) in enumerate(sizes)]
    for item in sequences:
        scheduler.add(item)
    seen = [0] * len(sequences)
    steps = 0
    while (step := scheduler.next_step()) is not None:
        steps += 1
        assert steps < 10_000, "the scheduler does not come to an end"
        assert scheduler.running <= SHAPE.max_batch
        if isinstance(step, PrefillStep):
            tokens = sum(chunk.stop - chunk.start for chunk in step.chunks)
            assert tokens <= max(SHAPE.prefill_tokens, SHAPE.chunk_tokens)
            for chunk in step.chunks:
                assert chunk.start == seen[chunk.sequence.index]
                assert chunk.start % SHAPE.chunk_tokens == 0
                seen[chunk.sequence.index] = chunk.stop
            advanced = [chunk.sequence for chunk in step.chunks if chunk.ends_prompt]
        else:
            rows = [item for rows in step.rows for item in rows]
            assert len(rows) == scheduler.running
            assert all(item.length < capacity_class(item.capacity_needed) for item in rows)
            advanced = [item for item in rows if item.prompt_done]
        for item in advanced:
            item.append(7, 1, 0.5)
        for item in advanced:
            if item.finish is not None:
                scheduler.finish(item)
    assert seen == [prompt for prompt, _ in sizes]
    assert [len(item.tokens) for item in sequences] == [new for _, new in sizes]
    assert all(item.finish is FinishReason.LENGTH for item in sequences)


def test_a_row_draws_the_same_numbers_in_any_company() -> None:
    """Uniforms are keyed by seed and row: repeatable, and different for other rows and seeds."""

    def draws(row: int, seed: int) -> list[float]:
        item = Sequence(0, row, [1], SamplingSpec(seed=seed), 1, frozenset(), None)
        return [item.uniform() for _ in range(3)]

    assert draws(5, 1) == draws(5, 1)
    assert len({draws(row, seed)[0] for row in range(4) for seed in range(4)}) == 16
    assert draws(2**40, 2**62) == draws(2**40, 2**62)


@given(
    st.lists(st.text("abc", max_size=3), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_are_found_across_tokens(pieces: list[str], stops: list[str]) -> None:
    """A sequence ends with the token that completes a stop string, and not before."""
    stream = iter(pieces)
    item = Sequence(
        0, 0, [1], SamplingSpec(stop=tuple(stops)), 99, frozenset(), lambda token: next(stream)
    )
    text = ""
    for piece in pieces:
        item.append(1, 1, 0.5)
        text += piece
        found = any(stop in text for stop in stops)
        assert (item.finish is FinishReason.STOP) == found
        if found:
            cut = cut_at_stop(text, tuple(stops))
            assert text.startswith(cut)
            assert not any(stop in cut for stop in stops)
            return
    assert cut_at_stop(text, tuple(stops)) == text
