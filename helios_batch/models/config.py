"""What a decoder is made of, as data: every supported architecture is one `DecoderConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh", "gelu", "relu"]


@dataclass(frozen=True)
class Norm:
    """A normalisation. `offset` is added to the stored weight (Gemma stores weight - 1)."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0


@dataclass(frozen=True)
class Llama3Scaling:
    """Frequency scaling of Llama 3.1 and later."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding over whole heads, after Su et al., arXiv 2104.09864."""

    theta: float
    linear_factor: float = 1.0
    llama3: Llama3Scaling | None = None


@dataclass(frozen=True)
class LayerKind:
    """What differs between layers: the attention window in tokens, and the rotary embedding."""

    window: int | None
    rotary: Rotary | None


@dataclass(frozen=True)
class DecoderConfig:
    """A pre-norm decoder. Sizes are in elements, `context_length` in tokens.

    `gated`: the MLP is down(act(gate(x)) * up(x)); otherwise down(act(up(x))).
    `post_norms`: attention and MLP outputs are normed again before the residual add (Gemma 3).
    `position_offset`: learned position embeddings start at this row; None means rotary.
    """

    architecture: str
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    norm: Norm
    activation: Activation
    gated: bool
    attention_scale: float
    layers: tuple[LayerKind, ...]
    tied_head: bool
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    position_offset: int | None = None

    @property
    def num_layers(self) -> int:
        """Layers of the full model."""
        return len(self.layers)

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def kv_elements_per_token(self) -> int:
        """Key and value elements that one layer keeps for one token."""
        return 2 * self.num_kv_heads * self.head_dim
