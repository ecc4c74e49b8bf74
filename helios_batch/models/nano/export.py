"""Writing a trained network as a model folder that transformers and this project read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer

from helios_batch.models.nano.network import EPSILON, THETA, Network, checkpoint_tensors
from helios_batch.models.nano.tokenizer import END


def export(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, generation config, tokenizer and bf16 weights to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = network.shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context_length,
        "hidden_act": "silu",
        "rms_norm_eps": EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "bfloat16",
        "helios_exits": "every_layer",
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": 0, "pad_token_id": 0})
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "padding_side": "left",
        "model_max_length": shape.context_length,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in checkpoint_tensors(network).items()
    }
    # save_file would make it readable by nobody else
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
