"""The memory planner as a pure function."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helios_batch.engine.memory import MemoryPlan, StepShape, plan_memory
from helios_batch.engine.slots import capacity_class
from helios_batch.errors import ResourceError
from helios_batch.models.config import DecoderConfig, LayerKind, Norm, Rotary

SMOLLM2 = DecoderConfig(
    architecture="llama",
    hidden_size=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49152,
    context_length=8192,
    norm=Norm("rms", 1e-5),
    activation="silu",
    gated=True,
    attention_scale=0.125,
    layers=(LayerKind(None, Rotary(1e5)),) * 30,
    tied_head=True,
)
budgets = st.integers(600 * 2**20, 8 * 2**30)
depths = st.integers(1, 30)
lengths = st.integers(1, 8192)


def plan(depth: int, budget: int, tokens: int, batch: int = 256) -> MemoryPlan | None:
    try:
        return plan_memory(SMOLLM2, depth, 2, budget, StepShape(max_batch=batch), tokens)
    except ResourceError:
        return None


@given(depths, budgets, lengths, st.integers(1, 512))
def test_a_plan_stays_inside_its_budget(depth: int, budget: int, tokens: int, batch: int) -> None:
    """Weights, activations and KV cache together fit, and so does the batch in the cache."""
    made = plan(depth, budget, tokens, batch)
    assume(made is not None)
    assert made is not None
    assert made.weights + made.activations + made.kv <= budget
    assert made.batch_size * capacity_class(tokens) <= made.kv_tokens
    assert 1 <= made.batch_size <= batch


@given(depths, depths, budgets, lengths)
def test_shallower_is_never_smaller(one: int, other: int, budget: int, tokens: int) -> None:
    """At the same budget fewer layers give a batch at least as large."""
    shallow, deep = plan(min(one, other), budget, tokens), plan(max(one, other), budget, tokens)
    assume(deep is not None)
    assert deep is not None
    assert shallow is not None, "a budget that holds more layers holds fewer"
    assert shallow.batch_size >= deep.batch_size


@given(depths, budgets, st.integers(0, 2**30), lengths)
def test_more_memory_is_never_worse(depth: int, budget: int, more: int, tokens: int) -> None:
    """A larger budget gives a batch at least as large."""
    small, large = plan(depth, budget, tokens), plan(depth, budget + more, tokens)
    assume(small is not None)
    assert small is not None
    assert large is not None
    assert large.batch_size >= small.batch_size


@given(depths, lengths)
def test_the_error_names_a_budget_that_works(depth: int, tokens: int) -> None:
    """The least budget that the message gives is enough, and a mebibyte less than it is not."""
    with pytest.raises(ResourceError) as caught:
        plan_memory(SMOLLM2, depth, 2, 1, StepShape(), tokens)
    assert caught.value.fix is not None
    least = int(caught.value.fix.split("MiB")[0].rsplit(" ", 1)[1])
    assert plan(depth, least * 2**20, tokens) is not None
    assert plan(depth, (least - 1) * 2**20, tokens) is None


def test_the_formula_of_the_design() -> None:
    """Batch = floor((budget - weights - activations) / KV of one sequence), in slots."""
    made = plan(30, 512 * 2**20, 128)
    assert made is not None
    free = 512 * 2**20 - made.weights - made.activations
    assert made.kv_per_token == 30 * 2 * 3 * 64 * 2
    assert made.batch_size == free // made.kv_per_token // 128
