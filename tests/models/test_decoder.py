"""The decoder is equal to transformers on every supported architecture, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helios_batch.engine.attention import ChunkPlace, DecodeAttention, PrefillAttention, SlabRows
from helios_batch.engine.kv_cache import KVCache
from helios_batch.errors import ModelError
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.decoder import Decoder
from helios_batch.models.folder import open_model
from helios_batch.models.weights import GreedyLoader
from tests.support.tiny import CONFIGS, CONTEXT, VOCABULARY, edit_config, make_model

CAPACITY = 64
CHUNK = 8
# (prompt, continuation): shorter and longer than a chunk and than the sliding windows
LENGTHS = [(5, 6), (29, 6), (8, 6), (1, 6)]


def load(folder: Path) -> Decoder:
    model = open_model(str(folder))
    with Checkpoint(folder) as checkpoint:
        loader = GreedyLoader(
            model.config,
            model.architecture.tensor_names,
            checkpoint,
            torch.float32,
            torch.device("cpu"),
        )
        return Decoder(model.config, loader.load(model.config.num_layers))


def logits_by_position(decoder: Decoder, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    """Prefill all prompts in chunks, then decode them as one batch; return [length, vocabulary]."""
    cache = KVCache(decoder.config, decoder.depth, 1024, torch.float32, torch.device("cpu"))
    cache.arrange(512)
    rows: list[list[torch.Tensor]] = [[] for _ in sequences]

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return decoder.final_norm(hidden) @ decoder.weights.head.T

    longest = max(prompt for prompt, _ in LENGTHS)
    for start in range(0, longest, CHUNK):
        chunks = [
            ChunkPlace(0, i, CAPACITY, start, min(start + CHUNK, prompt))
            for i, (prompt, _) in enumerate(LENGTHS)
            if start < prompt
        ]
        tokens = torch.cat([sequences[c.index][c.start : c.stop] for c in chunks])
        positions = torch.cat([torch.arange(c.start, c.stop) for c in chunks])
        attention = PrefillAttention(
            decoder.config, decoder.kinds, cache, chunks, torch.device("cpu")
        )
        out = logits(decoder.forward(tokens, positions, attention))
        for chunk, part in zip(chunks, out.split([c.stop - c.start for c in chunks]), strict=True):
            rows[chunk.index] += part
    for step in range(LENGTHS[0][1]):
        positions = torch.tensor([prompt + step for prompt, _ in LENGTHS])
        tokens = torch.stack(
            [s[position] for s, position in zip(sequences, positions.tolist(), strict=True)]
        )
        attention = DecodeAttention(
            decoder.config, decoder.kinds, cache, [SlabRows(0, CAPACITY, positions)]
        )
        for i, row in enumerate(logits(decoder.forward(tokens, positions, attention))):
            rows[i].append(row)
    return [torch.stack(row) for row in rows]


@pytest.mark.parametrize("kind", CONFIGS)
@torch.inference_mode()
def test_logits_equal_transformers(kind: str, tmp_path: Path) -> None:
    """Chunked prefill and batched decode give transformers' logits within 1e-4."""
    reference = make_model(tmp_path, kind)
    torch.manual_seed(1)
    sequences = [torch.randint(1, VOCABULARY, (sum(length),)) for length in LENGTHS]
    found = logits_by_position(load(tmp_path), sequences)
    for sequence, ours in zip(sequences, found, strict=True):
        theirs = reference(sequence[None]).logits[0]
        assert theirs.std() > 0.5, "the test model's logits say nothing"
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_checkpoint_without_the_base_models_prefix(tmp_path: Path) -> None:
    """GPT-2's public checkpoint names its tensors without `transformer.`; it loads the same."""
    reference = make_model(tmp_path, "gpt2")
    save_file(reference.transformer.state_dict(), tmp_path / "model.safetensors")
    sequences = [torch.arange(1, sum(length) + 1) for length in LENGTHS]
    found = logits_by_position(load(tmp_path), sequences)
    for sequence, ours in zip(sequences, found, strict=True):
        torch.testing.assert_close(ours, reference(sequence[None]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("llama2", {"model_type": "mamba"}, "llama, mistral, qwen2"),
        (
            "llama2",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
            "yarn",
        ),
        (
            "llama2",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "dynamic",
        ),
        ("llama2", {"hidden_act": "tanh"}, "tanh"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("opt", {"word_embed_proj_dim": 32}, "word_embed_proj_dim"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_is_not_supported_is_refused(
    kind: str, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """Unknown architectures and variants are errors that name the setting, not approximations."""
    make_model(tmp_path, kind)
    edit_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=named):
        open_model(str(tmp_path))


@torch.inference_mode()
def test_stray_keys_change_nothing(tmp_path: Path) -> None:
    """Keys about windows in a Llama config are ignored, as transformers ignores them."""
    reference = make_model(tmp_path, "llama2")
    edit_config(tmp_path, sliding_window=4, layer_types=["sliding_attention"] * 4)
    sequences = [torch.arange(1, sum(length) + 1) for length in LENGTHS]
    for sequence, ours in zip(
        sequences, logits_by_position(load(tmp_path), sequences), strict=True
    ):
        torch.testing.assert_close(ours, reference(sequence[None]).logits[0], atol=1e-4, rtol=0)


def test_context_length_is_read(tmp_path: Path) -> None:
    """Learned and rotary positions both give the config's context length."""
    for kind in ("gpt2", "opt", "llama2"):
        make_model(tmp_path / kind, kind)
        assert open_model(str(tmp_path / kind)).config.context_length == CONTEXT
