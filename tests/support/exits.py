"""Exits for tests, and what transformers' own layers make of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from helios_batch.models.exits.file import write_exit
from helios_batch.models.exits.metadata import ExitMetadata
from helios_batch.models.folder import open_model

HIDDEN, QKV, HEADS, INNER = 192, 4 * 48 + 2 * 2 * 48, 192, 160
MATRICES = {
    "qkv": (QKV, HIDDEN),
    "attention_out": (HIDDEN, HEADS),
    "mlp_in": (2 * INNER, HIDDEN),
    "mlp_out": (HIDDEN, INNER),
}


def metadata(folder: Path, depth: int, kind: str, **fields: Any) -> ExitMetadata:
    """Return metadata of an exit of a tiny model."""
    model = open_model(str(folder))
    return ExitMetadata(kind, model.digest, "tiny", model.config.num_layers, depth, **fields)


def random_exit(kind: str, tail: tuple[int, ...] = (), seed: int = 5) -> dict[str, torch.Tensor]:
    """Return the tensors of an exit of a kind, large enough that a forgotten one would show."""
    torch.manual_seed(seed)
    hidden = HIDDEN
    tensors = {"norm.weight": 1 + torch.randn(hidden) * 0.2}
    if kind == "bridge":
        tensors["bridge.weight"] = torch.eye(hidden) + torch.randn(hidden, hidden) * 0.05
        tensors["bridge.bias"] = torch.randn(hidden) * 0.2
        for layer in (0, *tail):
            for slot, (rows, columns) in MATRICES.items():
                tensors[f"delta.{layer}.{slot}.down"] = torch.randn(4, columns) * 0.1
                tensors[f"delta.{layer}.{slot}.up"] = torch.randn(rows, 4) * 0.1
    if kind == "mlp":
        tensors["mlp.mlp_norm.weight"] = 1 + torch.randn(hidden) * 0.2
        for slot in ("mlp_in", "mlp_out"):
            tensors[f"mlp.{slot}.weight"] = torch.randn(*MATRICES[slot]) * 0.1
    if kind == "layer:1":
        for slot in ("attention_norm", "mlp_norm"):
            tensors[f"layers.0.{slot}.weight"] = 1 + torch.randn(hidden) * 0.2
        for slot, shape in MATRICES.items():
            tensors[f"layers.0.{slot}.weight"] = torch.randn(shape) * 0.1
        tensors["head.weight"] = torch.randn(384, hidden) * 0.5
    return tensors


def add_exit(
    folder: Path, kind: str, depth: int, tail: tuple[int, ...] = (), **fields: Any
) -> None:
    """Write a random exit into a model folder's own exits."""
    own = int(kind.removeprefix("layer:")) if kind.startswith("layer:") else 0
    found = metadata(folder, depth, kind, tail=tail, own_layers=own, **fields)
    write_exit(folder / "exits" / f"exit-{depth:02d}.safetensors", found, random_exit(kind, tail))


@torch.inference_mode()
def reference_logits(
    reference: Any, ids: torch.Tensor, depth: int, tail: tuple[int, ...], tensors: Mapping[str, Any]
) -> torch.Tensor:
    """Return logits [T, vocabulary] of one text [T] at an exit, by transformers' own Llama layers.

    The reference's weights are changed as the exit says: give it a copy.
    """
    inner = reference.model
    for layer in {int(name.split(".")[1]) for name in tensors if name.startswith("delta.")}:
        add_deltas(inner.layers[layer], layer, tensors)
    hidden = inner.embed_tokens(ids[None])
    rotations = inner.rotary_emb(hidden, torch.arange(len(ids))[None])

    def run(layer: Any) -> None:
        nonlocal hidden
        out = layer(hidden, position_embeddings=rotations, attention_mask=None)
        hidden = out[0] if isinstance(out, tuple) else out

    for layer in inner.layers[:depth]:
        run(layer)
    if "bridge.weight" in tensors:
        hidden = hidden @ tensors["bridge.weight"].T + tensors["bridge.bias"]
    for index in tail:
        run(inner.layers[index])
    if "layers.0.qkv.weight" in tensors:
        own = inner.layers[-1]
        take_over(own, tensors)
        own.self_attn.layer_idx = depth
        run(own)
    if "mlp.mlp_in.weight" in tensors:
        normed = norm(reference, hidden, tensors["mlp.mlp_norm.weight"])
        gate, up = (normed @ tensors["mlp.mlp_in.weight"].T).chunk(2, dim=-1)
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ tensors["mlp.mlp_out.weight"].T
    head = tensors.get("head.weight", reference.lm_head.weight)
    logits: torch.Tensor = norm(reference, hidden, tensors["norm.weight"])[0] @ head.T
    return logits


def norm(reference: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Norm `hidden` with a weight of an exit's, as the reference's own norms do."""
    eps = reference.config.rms_norm_eps
    return hidden * (hidden.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def _fused(layer: Any) -> dict[str, list[torch.nn.Linear]]:
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
        "attention_out": [attention.o_proj],
        "mlp_in": [mlp.gate_proj, mlp.up_proj],
        "mlp_out": [mlp.down_proj],
    }


def add_deltas(layer: Any, index: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Change a layer of the reference, number `index`, as an exit's tensors say."""
    for slot, modules in _fused(layer).items():
        down, up = (tensors[f"delta.{index}.{slot}.{part}"] for part in ("down", "up"))
        rows = (up @ down).split([module.out_features for module in modules])
        for module, part in zip(modules, rows, strict=True):
            module.weight += part


def take_over(layer: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a layer of the reference the weights of an exit's own layer."""
    for slot, modules in _fused(layer).items():
        rows = tensors[f"layers.0.{slot}.weight"].split([m.out_features for m in modules])
        for module, part in zip(modules, rows, strict=True):
            module.weight.copy_(part)
    layer.input_layernorm.weight.copy_(tensors["layers.0.attention_norm.weight"])
    layer.post_attention_layernorm.weight.copy_(tensors["layers.0.mlp_norm.weight"])
