"""Where Hugging Face checkpoints keep each tensor of the decoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorNames:
    """Where a checkpoint keeps each tensor.

    `base` may be absent from a checkpoint's names (GPT-2's own has none). In `layer`, several
    names are stacked along the output dimension into one fused matrix; names are given without
    `.weight` and `.bias`. `transposed` layers store matrices as (in, out).
    """

    base: str
    embedding: str
    final_norm: str
    layers: str
    layer: dict[str, tuple[str, ...]]
    position_embedding: str | None = None
    transposed: bool = False
    head: str = "lm_head"


_LLAMA_LAYER = {
    "attention_norm": ("input_layernorm",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_out": ("mlp.down_proj",),
}
_QK_NORMS = {"q_norm": ("self_attn.q_norm",), "k_norm": ("self_attn.k_norm",)}
_GEMMA3_LAYER = (
    _LLAMA_LAYER
    | _QK_NORMS
    | {
        "attention_post_norm": ("post_attention_layernorm",),
        "mlp_norm": ("pre_feedforward_layernorm",),
        "mlp_post_norm": ("post_feedforward_layernorm",),
    }
)


def _llama_names(layer: dict[str, tuple[str, ...]]) -> TensorNames:
    return TensorNames("model.", "embed_tokens", "norm", "layers.{}.", layer)


OPT = TensorNames(
    base="model.decoder.",
    embedding="embed_tokens",
    position_embedding="embed_positions",
    final_norm="final_layer_norm",
    layers="layers.{}.",
    layer={
        "attention_norm": ("self_attn_layer_norm",),
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_out": ("self_attn.out_proj",),
        "mlp_norm": ("final_layer_norm",),
        "mlp_in": ("fc1",),
        "mlp_out": ("fc2",),
    },
)
GPT2 = TensorNames(
    base="transformer.",
    embedding="wte",
    position_embedding="wpe",
    final_norm="ln_f",
    layers="h.{}.",
    layer={
        "attention_norm": ("ln_1",),
        "qkv": ("attn.c_attn",),
        "attention_out": ("attn.c_proj",),
        "mlp_norm": ("ln_2",),
        "mlp_in": ("mlp.c_fc",),
        "mlp_out": ("mlp.c_proj",),
    },
    transposed=True,
)

LLAMA = _llama_names(_LLAMA_LAYER)
QWEN3 = _llama_names(_LLAMA_LAYER | _QK_NORMS)
GEMMA3 = _llama_names(_GEMMA3_LAYER)
