"""The memory planner: what fits into a budget at a depth (pure, no torch).

batch size = floor((budget - weights(depth) - activations) / KV bytes of one sequence at depth).
Depth shrinks both the weights and the KV cache, so a shallow model runs larger batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from helios_batch.engine.slots import capacity_class
from helios_batch.errors import ResourceError
from helios_batch.models.config import DecoderConfig
from helios_batch.models.exits.metadata import NO_EXIT, ExitShape

HEAD_TILE = 4096
"""Vocabulary entries that the output head treats at a time."""
LIBRARY_SCRATCH = 16 << 20
"""Bytes left for what matrix libraries and the allocator hold beside the tensors."""
FRAGMENTATION = 1.5
"""Activations come and go in all sizes: the allocator's heap holds so many times their bytes. The
same job took 482 and 511 MiB in two runs where 500 had been planned without this."""
SAMPLED_ROWS = 16
"""Rows that are sampled at a time; only these have logits over the whole vocabulary."""
DRAWN_LOGITS = 1 << 18
"""Logits that a draw sorts and adds up at a time, in whole rows, at least one."""
DRAW_BYTES = 56
"""Bytes that a draw holds for each of them: it keeps them sorted, with ids, and in float64."""


@dataclass(frozen=True)
class StepShape:
    """What one step may hold: prompt tokens per chunk and per prefill step, rows per decode."""

    chunk_tokens: int = 512
    prefill_tokens: int = 1024
    max_batch: int = 256


@dataclass(frozen=True)
class MemoryPlan:
    """How a budget is spent; sizes in bytes, `kv_tokens` and `sequence_tokens` in tokens.

    `batch_size` is how many sequences of `sequence_tokens` run at once.
    """

    depth: int
    budget: int
    weights: int
    activations: int
    kv_per_token: int
    kv_tokens: int
    sequence_tokens: int
    batch_size: int

    @property
    def kv(self) -> int:
        """Bytes of the KV cache."""
        return self.kv_tokens * self.kv_per_token


def plan_memory(
    config: DecoderConfig,
    depth: int,
    itemsize: int,
    budget: int,
    shape: StepShape,
    sequence_tokens: int,
    exit_: ExitShape = NO_EXIT,
    states: bool = False,
) -> MemoryPlan:
    """Spend `budget` bytes: weights and activations first, the rest on KV cache.

    Args:
        config: the model.
        depth: layers loaded.
        itemsize: bytes of one weight, activation or KV element.
        budget: bytes for weights, KV cache and activations together.
        shape: limits of one step.
        sequence_tokens: prompt and generated tokens of the sequences to plan for.
        exit_: what runs after the loaded layers; its layers have a KV cache too.
        states: whether a hidden state is kept for each token beside its keys and values.

    Raises:
        ResourceError: the budget does not hold one such sequence; the message says what would.
    """
    weights = weight_bytes(config, depth, itemsize, exit_)
    activations = activation_bytes(config, itemsize, shape)
    elements = (depth + exit_.layers) * config.kv_elements_per_token
    if states:
        elements += state_elements(config)
    per_token = elements * itemsize
    one_sequence = capacity_class(sequence_tokens)
    needed = weights + activations + one_sequence * per_token
    if budget < needed:
        raise ResourceError(
            f"{budget:,} bytes of memory don't hold {config.architecture} at {depth} layers: "
            f"weights {weights:,}, activations {activations:,}, and "
            f"{one_sequence * per_token:,} for the KV cache of one sequence",
            where="resources.memory",
            fix=f"give at least {-(-needed // 2**20)}MiB, or a smaller depth",
        )
    # more than max_batch sequences of full context can't be in use
    useful = shape.max_batch * capacity_class(config.context_length)
    kv_tokens = min((budget - weights - activations) // per_token, useful)
    batch = min(shape.max_batch, kv_tokens // one_sequence)
    return MemoryPlan(
        depth, budget, weights, activations, per_token, kv_tokens, sequence_tokens, batch
    )


def state_elements(config: DecoderConfig) -> int:
    """Return the elements of a token's kept hidden state: whole keys' widths, as blocks have."""
    width = config.num_kv_heads * config.head_dim
    return -(-config.hidden_size // width) * width


def weight_bytes(
    config: DecoderConfig,
    depth: int,
    itemsize: int,
    exit_: ExitShape = NO_EXIT,
) -> int:
    """Return the bytes of the weights loaded at `depth`; norms are held in float32."""
    outside = config.vocab_size * config.hidden_size * (1 if config.tied_head else 2)
    if config.position_offset is not None:
        outside += (config.context_length + config.position_offset) * config.hidden_size
    norm = _norm_bytes(config)
    layers = depth + exit_.tail_layers
    # a few of the exit's elements are of norms, in float32
    own = exit_.elements * itemsize + (8 * exit_.layers + 2) * norm * bool(exit_.elements)
    return outside * itemsize + norm + layers * layer_bytes(config, itemsize) + own


def layer_bytes(config: DecoderConfig, itemsize: int) -> int:
    """Return the bytes of one layer's weights; norms are held in float32."""
    norm = _norm_bytes(config)
    hidden, inner = config.hidden_size, config.intermediate_size
    mlp_rows = (2 if config.gated else 1) * inner
    elements = config.qkv_size * hidden + config.num_heads * config.head_dim * hidden
    elements += mlp_rows * hidden + inner * hidden
    elements += config.qkv_size * config.qkv_bias + hidden * config.attention_out_bias
    elements += (mlp_rows + hidden) * config.mlp_bias
    norms = norm * (4 if config.post_norms else 2)
    if config.qk_norm:
        norms += 2 * config.head_dim * 4
    return elements * itemsize + norms


def _norm_bytes(config: DecoderConfig) -> int:
    return config.hidden_size * (2 if config.norm.kind == "layer" else 1) * 4


def activation_bytes(config: DecoderConfig, itemsize: int, shape: StepShape) -> int:
    """Return an upper bound of what one step allocates beside weights and KV cache."""
    tokens = max(shape.prefill_tokens, shape.max_batch)
    mlp = (2 if config.gated else 1) * config.intermediate_size
    # residual stream, its normed copy and update; QKV, its rotated copy and the attention's result
    per_token = (4 * config.hidden_size + 3 * config.qkv_size) * itemsize
    # MLP before and after the activation; float32 copies inside a norm
    per_token += (mlp + 2 * config.intermediate_size) * itemsize + 2 * config.hidden_size * 4
    # prefill attention scores with a mask: one chunk against a whole context, float32
    scores = shape.chunk_tokens * config.context_length * (4 + 1)
    # a head tile in its own type and twice in float32
    head = shape.max_batch * HEAD_TILE * (itemsize + 8)
    sampling = SAMPLED_ROWS * config.vocab_size * (itemsize + 4)
    sampling += rows_drawn(config.vocab_size) * config.vocab_size * DRAW_BYTES
    return LIBRARY_SCRATCH + int(
        FRAGMENTATION * (tokens * per_token + max(scores, head + sampling))
    )


def rows_drawn(vocab_size: int) -> int:
    """Return how many rows a draw treats at a time, at most `SAMPLED_ROWS`."""
    return min(SAMPLED_ROWS, max(1, DRAWN_LOGITS // vocab_size))
