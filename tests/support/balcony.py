"""Tiny checkpoints in Balcony's layout, cut from models of transformers."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from tests.support.megatron import Branch


def write_balcony(
    folder: Path, model: LlamaForCausalLM, exits: dict[int, Branch], tied: bool
) -> None:
    """Write a folder as Balcony's `NestedLlamaForCausalLM.save_pretrained` does."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for i, branch in enumerate(exits.values()):
        assert branch.block is not None and branch.norm is not None and branch.head is not None
        for name, tensor in branch.block.state_dict().items():
            state[f"model.exit_modules.{i}.0.{name}"] = tensor.clone()
        state[f"model.exit_modules.{i}.1.weight"] = branch.norm.weight.detach().clone()
        if not tied:
            state[f"model.exit_modules.{i}.2.weight"] = branch.head
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {
        "model_type": "nested_llama",
        "architectures": ["NestedLlamaForCausalLM"],
        "exit_layer_indices": list(exits),
        "output_exit_layers": list(exits),
        "exit_decoder_layer": True,
        "tie_exit_lm_head": tied,
        "output_full_model": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
