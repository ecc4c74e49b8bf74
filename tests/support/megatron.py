"""Tiny checkpoints in EE-LLM's layout, cut from models of transformers."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

HIDDEN, HEADS, INNER, LAYERS = 64, 4, 96, 4
VOCABULARY, PADDED = 120, 128
Namespace = argparse.Namespace


@dataclass
class Branch:
    """An exit as modules of transformers; what is None is not there."""

    mlp: LlamaMLP | None = None
    block: LlamaDecoderLayer | None = None
    norm: LlamaRMSNorm | None = None
    head: torch.Tensor | None = None


@dataclass
class Layout:
    """How a checkpoint is split, and what its exits are made of; `exits` are numbered from 1."""

    exits: tuple[int, ...]
    parts: tuple[str, ...] = ("norm",)
    tensor: int = 1
    pipeline: int = 1
    kv_heads: int = HEADS
    pre_exit: bool = False
    tied: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


def llama(layout: Layout, layers: int = LAYERS) -> LlamaForCausalLM:
    """Return a Llama of random weights, large enough that a wrong one changes the logits."""
    config = LlamaConfig(
        vocab_size=PADDED,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=layout.kv_heads,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=layout.tied,
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    randomize(model)
    model.tie_weights()
    return model


def randomize(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            one_dimensional = parameter.dim() == 1
            parameter.normal_(1.0 if one_dimensional else 0.0, 0.2 if one_dimensional else 0.15)
            if "embed" in name:
                parameter.normal_(0, 0.5)


def branches(model: LlamaForCausalLM, layout: Layout) -> dict[int, Branch]:
    """Return random exits, by the layers that they are at."""
    config = model.config
    found = {}
    for layer in layout.exits:
        branch = Branch()
        if "mlp" in layout.parts:
            branch.mlp = LlamaMLP(config)
        if "block" in layout.parts:
            branch.block = LlamaDecoderLayer(config, layer)
        if "norm" in layout.parts:
            branch.norm = LlamaRMSNorm(HIDDEN, eps=config.rms_norm_eps)
        for module in (branch.mlp, branch.block, branch.norm):
            if module is not None:
                randomize(module)
        if not layout.tied:
            branch.head = torch.randn(PADDED, HIDDEN) * 0.15
        found[layer] = branch
    return found


def exit_logits(
    model: LlamaForCausalLM, branch: Branch, depth: int, tokens: torch.Tensor
) -> torch.Tensor:
    """Return [T, padded vocabulary] as EE-LLM computes them, by a Llama made of these parts."""
    config = LlamaConfig.from_dict(model.config.to_dict())
    config.num_hidden_layers = depth + (branch.block is not None)
    config._attn_implementation = "eager"
    shallow = LlamaForCausalLM(config).eval()
    shallow.model.embed_tokens = model.model.embed_tokens
    for i in range(depth):
        shallow.model.layers[i].load_state_dict(model.model.layers[i].state_dict())
    if branch.mlp is not None:
        shallow.model.layers[depth - 1].mlp = branch.mlp
    if branch.block is not None:
        shallow.model.layers[depth].load_state_dict(branch.block.state_dict())
    shallow.model.norm = branch.norm if branch.norm is not None else torch.nn.Identity()
    head = model.lm_head.weight if branch.head is None else branch.head
    return shallow.model(tokens[None]).last_hidden_state[0] @ head.T


def make(folder: Path, layout: Layout) -> tuple[LlamaForCausalLM, dict[int, Branch]]:
    """Write a random checkpoint; return the modules that it was cut from."""
    torch.manual_seed(0)
    model = llama(layout)
    exits = branches(model, layout)
    write_checkpoint(folder, model, exits, layout)
    return model, exits


def write_checkpoint(
    folder: Path, model: LlamaForCausalLM, exits: dict[int, Branch], layout: Layout
) -> None:
    """Write shards and tracker as EE-LLM's `save_checkpoint` does."""
    args = Namespace(
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        ffn_hidden_size=INNER,
        num_attention_heads=HEADS,
        kv_channels=HIDDEN // HEADS,
        group_query_attention=layout.kv_heads != HEADS,
        num_query_groups=layout.kv_heads if layout.kv_heads != HEADS else 1,
        max_position_embeddings=256,
        position_embedding_type="rope",
        use_rotary_position_embeddings=False,
        rotary_percent=1.0,
        add_bias_linear=False,
        swiglu=True,
        untie_embeddings_and_output_weights=not layout.tied,
        normalization="RMSNorm",
        norm_epsilon=1e-5,
        params_dtype=torch.float32,
        tokenizer_type="Llama2Tokenizer",
        padded_vocab_size=PADDED,
        vocab_size=VOCABULARY,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=None,
        exit_layer_nums=list(layout.exits),
        exit_layer_temperature=[1.0 + 0.25 * i for i in range(len(layout.exits))],
        use_exit_mlp="mlp" in layout.parts,
        use_exit_block="block" in layout.parts,
        use_exit_norm="norm" in layout.parts,
        untie_exit_output_weights=not layout.tied,
        pre_exit=layout.pre_exit,
    )
    vars(args).update(layout.arguments)
    for rank in range(layout.tensor):
        for stage in range(layout.pipeline):
            state = {
                "args": args,
                "checkpoint_version": 3.0,
                "iteration": 7,
                "model": _stage(model, exits, layout, rank, stage),
            }
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if layout.pipeline > 1 else "")
            file = folder / "iter_0000007" / name / "model_optim_rng.pt"
            file.parent.mkdir(parents=True)
            torch.save(state, file)
    (folder / "latest_checkpointed_iteration.txt").write_text("7")


def _stage(
    model: LlamaForCausalLM, exits: dict[int, Branch], layout: Layout, rank: int, stage: int
) -> dict[str, Any]:
    def rows(weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().chunk(layout.tensor)[rank].clone()

    def columns(weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().chunk(layout.tensor, dim=1)[rank].clone()

    def mlp(prefix: str, module: Any) -> dict[str, torch.Tensor]:
        gate_up = [rows(module.gate_proj.weight), rows(module.up_proj.weight)]
        return {
            f"{prefix}.dense_h_to_4h.weight": torch.cat(gate_up),
            f"{prefix}.dense_4h_to_h.weight": columns(module.down_proj.weight),
        }

    def decoder_layer(prefix: str, module: Any, mlp_name: str = "mlp") -> dict[str, torch.Tensor]:
        attention, size = module.self_attn, HIDDEN // HEADS
        fused = []
        for group in range(layout.kv_heads):
            width = HEADS // layout.kv_heads * size
            fused.append(attention.q_proj.weight[group * width : (group + 1) * width])
            fused.append(attention.k_proj.weight[group * size : (group + 1) * size])
            fused.append(attention.v_proj.weight[group * size : (group + 1) * size])
        return {
            f"{prefix}.input_norm.weight": module.input_layernorm.weight.detach(),
            f"{prefix}.self_attention.query_key_value.weight": rows(torch.cat(fused)),
            f"{prefix}.self_attention.dense.weight": columns(attention.o_proj.weight),
            f"{prefix}.post_attention_norm.weight": module.post_attention_layernorm.weight.detach(),
            **mlp(f"{prefix}.{mlp_name}", module.mlp),
        }

    per_stage = LAYERS // layout.pipeline
    encoder: dict[str, torch.Tensor] = {}
    heads: dict[str, torch.Tensor] = {}
    for local in range(per_stage):
        layer, prefix = stage * per_stage + local + 1, f"layers.{local}"
        branch = exits.get(layer)
        trunk = "mlp.trunk" if branch is not None and branch.mlp is not None else "mlp"
        encoder |= decoder_layer(prefix, model.model.layers[layer - 1], trunk)
        if branch is None:
            continue
        if branch.mlp is not None:
            encoder |= mlp(f"{prefix}.mlp.branch", branch.mlp)
        if branch.block is not None:
            encoder |= decoder_layer(f"{prefix}.exit_block", branch.block)
        if branch.norm is not None:
            encoder[f"{prefix}.exit_norm.weight"] = branch.norm.weight.detach()
        if branch.head is not None:
            heads[f"{len(heads)}.weight"] = rows(branch.head)
    language: dict[str, Any] = {"encoder": encoder}
    found: dict[str, Any] = {"language_model": language}
    if heads:
        language["exit_output_layer"] = heads
    if stage == 0:
        language["embedding"] = {
            "word_embeddings": {"weight": rows(model.model.embed_tokens.weight)}
        }
    if stage == layout.pipeline - 1:
        encoder["final_norm.weight"] = model.model.norm.weight.detach()
        if not layout.tied:
            language["output_layer"] = {"weight": rows(model.lm_head.weight)}
        elif stage:
            found["word_embeddings_for_head"] = {"weight": rows(model.lm_head.weight)}
    return found
