"""The supported architectures: how each Hugging Face config is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helios_batch.errors import ModelError
from helios_batch.models import tensor_names as names
from helios_batch.models.config import (
    Activation,
    DecoderConfig,
    LayerKind,
    Llama3Scaling,
    Norm,
    Rotary,
)

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}


@dataclass(frozen=True)
class Architecture:
    """One `model_type`: its tensor names and how its config is read."""

    tensor_names: names.TensorNames
    read_config: Callable[[Any], DecoderConfig]


def _refuse(config: Any, key: str, accepted: object) -> None:
    value = getattr(config, key, accepted)
    if value != accepted:
        raise ModelError(
            f"{config.model_type} with {key} = {value!r} is not supported",
            where="config.json",
            fix=f"use a checkpoint with {key} = {accepted!r}",
        )


def _activation(config: Any, key: str) -> Activation:
    name = getattr(config, key)
    if name not in _ACTIVATIONS:
        raise ModelError(
            f"activation {name!r} is not supported",
            where=f"config.json, {key}",
            fix=f"supported are {', '.join(_ACTIVATIONS)}",
        )
    return _ACTIVATIONS[name]


def _rotary(parameters: dict[str, Any]) -> Rotary:
    kind = parameters.get("rope_type", "default")
    theta = float(parameters["rope_theta"])
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            "rotary embeddings over a part of each head are not supported",
            where="config.json, partial_rotary_factor",
            fix="use a checkpoint that rotates whole heads",
        )
    if kind == "default":
        return Rotary(theta)
    if kind == "linear":
        return Rotary(theta, linear_factor=float(parameters["factor"]))
    if kind == "llama3":
        scaling = Llama3Scaling(
            factor=float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_context=int(parameters["original_max_position_embeddings"]),
        )
        return Rotary(theta, llama3=scaling)
    raise ModelError(
        f"rope scaling {kind!r} is not supported",
        where="config.json, rope_scaling",
        fix="supported are default, linear and llama3; a model whose config adds scaling only to "
        "stretch its context runs without that entry, at its original context",
    )


def _layer_kinds(config: Any, windowed: bool) -> tuple[LayerKind, ...]:
    """Read windows and rotary embeddings by layer, from either form that configs have them in.

    Without `windowed`, keys about windows are stray ones that transformers ignores too.
    """
    types = getattr(config, "layer_types", None) if windowed else None
    window = getattr(config, "sliding_window", None) if windowed else None
    if types is None:
        types = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    parameters = config.rope_parameters
    by_type = "full_attention" in parameters or "sliding_attention" in parameters
    kinds = []
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(
                f"layer type {kind!r} is not supported",
                where="config.json, layer_types",
                fix="supported are full_attention and sliding_attention",
            )
        rotary = _rotary(parameters[kind] if by_type else parameters)
        kinds.append(LayerKind(window if kind == "sliding_attention" else None, rotary))
    return tuple(kinds)


def _llama_family(config: Any, *, windowed: bool = True, **differences: Any) -> DecoderConfig:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fields: dict[str, Any] = {
        "architecture": config.model_type,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "norm": Norm("rms", config.rms_norm_eps),
        "gated": True,
        "attention_scale": head_dim**-0.5,
        "layers": _layer_kinds(config, windowed),
        "tied_head": bool(config.tie_word_embeddings),
    }
    if "activation" not in differences:
        fields["activation"] = _activation(config, "hidden_act")
    return DecoderConfig(**(fields | differences))


def _llama(config: Any) -> DecoderConfig:
    bias = bool(getattr(config, "attention_bias", False))
    mlp_bias = bool(getattr(config, "mlp_bias", False))
    return _llama_family(
        config, windowed=False, qkv_bias=bias, attention_out_bias=bias, mlp_bias=mlp_bias
    )


def _mistral(config: Any) -> DecoderConfig:
    return _llama_family(config)


def _qwen2(config: Any) -> DecoderConfig:
    return _llama_family(config, qkv_bias=True)


def _qwen3(config: Any) -> DecoderConfig:
    bias = bool(config.attention_bias)
    return _llama_family(config, qkv_bias=bias, attention_out_bias=bias, qk_norm=True)


def _gemma3(config: Any) -> DecoderConfig:
    _refuse(config, "attn_logit_softcapping", None)
    _refuse(config, "final_logit_softcapping", None)
    if config.use_bidirectional_attention:
        _refuse(config, "use_bidirectional_attention", False)
    bias = bool(config.attention_bias)
    return _llama_family(
        config,
        norm=Norm("rms", config.rms_norm_eps, offset=1.0),
        activation=_activation(config, "hidden_activation"),
        attention_scale=config.query_pre_attn_scalar**-0.5,
        qkv_bias=bias,
        attention_out_bias=bias,
        qk_norm=True,
        post_norms=True,
        embedding_scale=config.hidden_size**0.5,
    )


def _opt(config: Any) -> DecoderConfig:
    _refuse(config, "do_layer_norm_before", True)
    _refuse(config, "_remove_final_layer_norm", False)
    _refuse(config, "word_embed_proj_dim", config.hidden_size)
    _refuse(config, "layer_norm_elementwise_affine", True)
    bias = bool(config.enable_bias)
    return _learned_positions(
        config,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        intermediate_size=config.ffn_dim,
        context_length=config.max_position_embeddings,
        norm=Norm("layer", 1e-5),
        num_layers=config.num_hidden_layers,
        bias=bias,
        position_offset=2,
    )


def _gpt2(config: Any) -> DecoderConfig:
    _refuse(config, "scale_attn_by_inverse_layer_idx", False)
    _refuse(config, "add_cross_attention", False)
    _refuse(config, "scale_attn_weights", True)
    return _learned_positions(
        config,
        hidden_size=config.n_embd,
        num_heads=config.n_head,
        intermediate_size=config.n_inner or 4 * config.n_embd,
        context_length=config.n_positions,
        norm=Norm("layer", config.layer_norm_epsilon),
        num_layers=config.n_layer,
        bias=True,
        position_offset=0,
    )


def _learned_positions(
    config: Any,
    *,
    hidden_size: int,
    num_heads: int,
    intermediate_size: int,
    context_length: int,
    norm: Norm,
    num_layers: int,
    bias: bool,
    position_offset: int,
) -> DecoderConfig:
    head_dim = hidden_size // num_heads
    return DecoderConfig(
        architecture=config.model_type,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        vocab_size=config.vocab_size,
        context_length=context_length,
        norm=norm,
        activation=_activation(config, "activation_function"),
        gated=False,
        attention_scale=head_dim**-0.5,
        layers=(LayerKind(None, None),) * num_layers,
        tied_head=bool(config.tie_word_embeddings),
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=bias,
        position_offset=position_offset,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(names.LLAMA, _llama),
    "mistral": Architecture(names.LLAMA, _mistral),
    "qwen2": Architecture(names.LLAMA, _qwen2),
    "qwen3": Architecture(names.QWEN3, _qwen3),
    "gemma3_text": Architecture(names.GEMMA3, _gemma3),
    "opt": Architecture(names.OPT, _opt),
    "gpt2": Architecture(names.GPT2, _gpt2),
}


def architecture_of(model_type: str, where: str) -> Architecture:
    """Return the architecture of a config's `model_type`.

    Raises:
        ModelError: it is not supported; the message lists those that are.
    """
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"architecture {model_type!r} is not supported",
            where=where,
            fix=f"supported are {', '.join(ARCHITECTURES)} (Llama 2/3, CodeLlama, Mistral, "
            "SmolLM2, Qwen 2/2.5/3, Gemma 3 text, OPT, GPT-2)",
        )
    return ARCHITECTURES[model_type]
