"""The arguments that a Megatron checkpoint was trained with: what its tensors mean (no torch)."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from helios_batch.errors import ModelError

# what a missing argument stands for in Megatron, and what a Llama needs
_NEEDED: dict[str, tuple[object, object]] = {
    "normalization": ("LayerNorm", "RMSNorm"),
    "swiglu": (False, True),
    "add_bias_linear": (True, False),
    "rotary_percent": (1.0, 1.0),
    "apply_layernorm_1p": (False, False),
    "apply_residual_connection_post_layernorm": (False, False),
    "openai_gelu": (False, False),
    "onnx_safe": (None, None),
    "num_experts": (None, None),
    "retro_add_retriever": (False, False),
    "standalone_embedding_stage": (False, False),
    "virtual_pipeline_model_parallel_size": (None, None),
    "transformer_impl": ("local", "local"),
}


@dataclass(frozen=True, slots=True)
class MegatronArgs:
    """Shape of the model, how it is split, and what its exits are made of.

    `exit_layers` are numbered from 1, in the order in which their heads are counted.
    `vocab_size` is None where the arguments don't tell it from its padded size.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_factor: float
    tied_head: bool
    vocab_size: int | None
    tokenizer_type: str | None
    tensor_parallel: int
    pipeline_parallel: int
    exit_layers: tuple[int, ...]
    exit_temperatures: tuple[float, ...]
    pre_exit: bool
    exit_mlp: bool
    exit_block: bool
    exit_norm: bool
    untied_exits: bool

    @property
    def stage_layers(self) -> int:
        """Layers of one pipeline stage."""
        return self.num_layers // self.pipeline_parallel

    def depth(self, exit_layer: int) -> int:
        """Return how many layers a token has passed where an exit begins."""
        return exit_layer - self.pre_exit


def read_arguments(state: dict[str, Any], where: str) -> MegatronArgs:
    """Read the arguments of a checkpoint's first shard.

    Raises:
        ModelError: they are missing, or say that the model is no Llama with exits.
    """
    found = state.get("args")
    if not isinstance(found, Namespace):
        raise _refused("the checkpoint does not hold its arguments", where)
    args = vars(found)
    _check(args, state, where)

    def number(name: str, default: int | None = None) -> int:
        value = args.get(name)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise _refused(f"argument {name} is {value!r}, not a number of one or more", where)
        return value

    def real(name: str, default: float) -> float:
        value = args.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or not value > 0:
            raise _refused(f"argument {name} is {value!r}, not a positive number", where)
        return float(value)

    def several(name: str) -> tuple[Any, ...]:
        value = args.get(name) or ()
        if not isinstance(value, list | tuple) or not all(type(x) in (int, float) for x in value):
            raise _refused(f"argument {name} is {value!r}, not a list of numbers", where)
        return tuple(value)

    heads = number("num_attention_heads")
    hidden = number("hidden_size")
    exit_layers = several("exit_layer_nums")
    temperatures = several("exit_layer_temperature") or (1.0,) * len(exit_layers)
    result = MegatronArgs(
        num_layers=number("num_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=number("num_query_groups") if args.get("group_query_attention") else heads,
        head_dim=number("kv_channels", hidden // heads),
        intermediate_size=number("ffn_hidden_size"),
        context_length=number("max_position_embeddings"),
        norm_eps=real("norm_epsilon", real("layernorm_epsilon", 1e-5)),
        rope_theta=real("rotary_base", 10_000),
        rope_factor=real("rotary_seq_len_interpolation_factor", 1),
        tied_head=not args.get("untie_embeddings_and_output_weights"),
        vocab_size=None if args.get("vocab_size") is None else number("vocab_size"),
        tokenizer_type=args.get("tokenizer_type"),
        tensor_parallel=number("tensor_model_parallel_size", 1),
        pipeline_parallel=number("pipeline_model_parallel_size", 1),
        exit_layers=exit_layers,
        exit_temperatures=temperatures,
        pre_exit=bool(args.get("pre_exit")),
        exit_mlp=bool(args.get("use_exit_mlp")),
        exit_block=bool(args.get("use_exit_block")),
        exit_norm=bool(args.get("use_exit_norm")),
        untied_exits=bool(args.get("untie_exit_output_weights")),
    )
    _check_structure(result, where)
    return result


def _check(args: dict[str, Any], state: dict[str, Any], where: str) -> None:
    for name, (default, needed) in _NEEDED.items():
        value = args.get(name, default)
        if value != needed and (value or needed):
            raise _refused(f"argument {name} is {value!r}, and must be {needed!r}", where)
    rotary = args.get("use_rotary_position_embeddings")
    if not rotary and args.get("position_embedding_type") != "rope":
        kind = args.get("position_embedding_type", "learned_absolute")
        raise _refused(f"argument position_embedding_type is {kind!r}, and must be 'rope'", where)
    version = state.get("checkpoint_version", 0)
    if not isinstance(version, int | float) or version < 2:
        raise _refused(f"checkpoint_version is {version}, with another order of attention", where)


def _check_structure(args: MegatronArgs, where: str) -> None:
    layers = args.exit_layers
    if not layers:
        raise _refused("argument exit_layer_nums is empty: the checkpoint has no exits", where)
    if len(set(layers)) < len(layers) or not all(
        type(layer) is int and 1 <= layer <= args.num_layers for layer in layers
    ):
        raise _refused(f"argument exit_layer_nums is {list(layers)} of {args.num_layers}", where)
    if len(args.exit_temperatures) != len(layers):
        raise _refused("argument exit_layer_temperature is not one number for each exit", where)
    if args.num_heads % args.num_kv_heads:
        raise _refused(
            f"argument num_query_groups is {args.num_kv_heads}, of {args.num_heads} heads", where
        )
    if args.num_layers % args.pipeline_parallel:
        raise _refused(
            f"{args.num_layers} layers don't make {args.pipeline_parallel} equal stages", where
        )
    if args.pre_exit and args.exit_mlp:
        raise _refused("arguments pre_exit and use_exit_mlp exclude each other", where)
    if not args.untied_exits and not args.tied_head:
        raise _refused(
            "exits share the embedding as their head (no untie_exit_output_weights), and the model "
            "does not (untie_embeddings_and_output_weights): EE-LLM has no such models",
            where,
        )


def _refused(what: str, where: str) -> ModelError:
    return ModelError(
        what,
        where=where,
        fix="convertible are EE-LLM's and EE-Tuning's checkpoints of Llama: RMSNorm, SwiGLU, "
        "rotary embeddings, no biases, at least one exit",
    )
