"""Tiny seeded models of the real architectures, as transformers writes them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()

VOCABULARY = 384
CONTEXT = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + m['role']) }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# heads of 192 elements in all: under 128, torch's choice of kernel depends on the batch
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GATED = _SIZES | {"intermediate_size": 160, "num_key_value_heads": 2}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama2": LlamaConfig(**_GATED | {"num_key_value_heads": 4}),
    "llama3": LlamaConfig(**_GATED, rope_parameters=_LLAMA3_ROPE),
    "llama-linear-rope": LlamaConfig(
        **_GATED, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "llama-biased": LlamaConfig(**_GATED, attention_bias=True, mlp_bias=True),
    "codellama": LlamaConfig(**_GATED, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "smollm2": LlamaConfig(**_GATED, tie_word_embeddings=True),
    "mistral": MistralConfig(**_GATED, head_dim=48, sliding_window=8),
    "qwen2": Qwen2Config(**_GATED),
    "qwen2-windowed": Qwen2Config(
        **_GATED, use_sliding_window=True, sliding_window=8, max_window_layers=2
    ),
    "qwen3": Qwen3Config(**_GATED, head_dim=48),
    "gemma3": Gemma3TextConfig(
        **_GATED,
        head_dim=48,
        query_pre_attn_scalar=60,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "opt": OPTConfig(**_SIZES, ffn_dim=160, word_embed_proj_dim=192),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=192,
        n_layer=4,
        n_head=4,
        n_positions=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    ),
}


def make_model(folder: Path, kind: str = "smollm2", seed: int = 0) -> Any:
    """Write a model of random weights and its tokenizer to `folder`; return the model.

    Weights, norms and biases are large enough that a forgotten one changes the logits.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "embed" in name or ".wte" in name or ".wpe" in name:
                parameter.normal_(0, 0.5)
            else:
                parameter.normal_(0, 0.08)
    model.eval()
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of `VOCABULARY` tokens; token 0 ends a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        pad_token="<|end|>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


@cache
def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """Return another one of `VOCABULARY` tokens, which marks spaces as Llama 2's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=[chr(code) for code in range(32, 127)],
        show_progress=False,
    )
    bpe.train_from_iterator(["a lazy dog, the quick brown fox " * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of a model folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
