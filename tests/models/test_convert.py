"""Checkpoints of EE-LLM and Balcony, converted, against the modules that they were cut from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from helios_batch.cli import app
from helios_batch.engine.attention import ChunkPlace, PrefillAttention
from helios_batch.engine.kv_cache import KVCache
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.convert.convert import convert
from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.file import find_exits
from helios_batch.models.exits.load import load_exit
from helios_batch.models.folder import open_model
from helios_batch.models.weights import GreedyLoader
from helios_batch.spec import SamplingSpec
from tests.support.balcony import write_balcony
from tests.support.engines import make_engine, prompts
from tests.support.megatron import (
    LAYERS,
    VOCABULARY,
    Layout,
    branches,
    exit_logits,
    llama,
    make,
)
from tests.support.tiny import tokenizer

pytestmark = pytest.mark.usefixtures("_one_thread")

TOKENS = torch.arange(1, 24) * 5 % VOCABULARY

LAYOUTS = {
    # as EE-LLM's own training scripts have them: no norm before an exit's head, pre_exit
    "ee-llm-1b": Layout((2, 3), (), pipeline=4, tied=True, pre_exit=True),
    "ee-llm-7b": Layout((2, 3), (), pipeline=2, pre_exit=True),
    # EE-Tuning's: exits with a norm, or an MLP and a norm, or a layer and a norm; also at the end
    "norm": Layout((1, 3, 4)),
    "norm-split": Layout((1, 2, 3), tensor=2, pipeline=2, kv_heads=2),
    "norm-tied": Layout((2, 3), tensor=2, pipeline=2, tied=True),
    "mlp": Layout((1, 2, 4), ("mlp", "norm"), kv_heads=2),
    "mlp-split": Layout((1, 2, 3), ("mlp", "norm"), tensor=2, pipeline=2, kv_heads=2),
    "mlp-alone": Layout((2,), ("mlp",), tensor=2, tied=True),
    "block": Layout((1, 3), ("block", "norm"), tensor=2, pipeline=2),
    "block-before": Layout((1, 2, 4), ("block", "norm"), kv_heads=2, pre_exit=True),
}


@pytest.fixture(scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost these tiny models more time than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_tokenizer(folder: Path) -> None:
    """Write a tokenizer of 100 tokens, fewer than the test models have."""
    tokenizer().save_pretrained(folder)
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    tokens = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
    state["model"] |= {"vocab": dict(tokens[:100]), "merges": []}
    file.write_text(json.dumps(state))


def logits(folder: Path, depth: int) -> torch.Tensor:
    """Return our [T, vocabulary] at a depth, with the exit that lies in the folder."""
    model = open_model(str(folder))
    with Checkpoint(folder) as checkpoint:
        cpu = torch.device("cpu")
        names = model.architecture.tensor_names
        loader = GreedyLoader(model.config, names, checkpoint, torch.float32, cpu)
        weights, exit_weights = loader.load(depth), None
        if depth < model.config.num_layers:
            exit_weights = load_exit(find_exits(model)[depth], model.config, loader, weights)
    decoder = Decoder(model.config, weights, exit_weights)
    cache = KVCache(model.config, len(decoder.kinds), 64, torch.float32, cpu)
    cache.arrange(64)
    chunk = ChunkPlace(0, 0, 64, 0, len(TOKENS))
    attention = PrefillAttention(model.config, decoder.kinds, cache, [chunk], cpu)
    hidden = decoder.forward(TOKENS, torch.arange(len(TOKENS)), attention)
    return decoder.final_norm(hidden) @ decoder.head.T


@pytest.mark.parametrize("name", LAYOUTS)
@torch.inference_mode()
def test_a_converted_checkpoint_says_what_its_model_says(name: str, tmp_path: Path) -> None:
    """Full depth and every exit give the logits of the modules that the shards were cut from."""
    layout = LAYOUTS[name]
    model, exits = make(tmp_path / "megatron", layout)
    conversion = convert(tmp_path / "megatron", tmp_path / "llama")

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    expected = model(TOKENS[None]).logits[0, :, :VOCABULARY]
    assert expected.std() > 0.5, "the test model's logits say nothing"
    torch.testing.assert_close(theirs(TOKENS[None]).logits[0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(tmp_path / "llama", LAYERS), expected, atol=1e-4, rtol=0)

    found = find_exits(open_model(str(tmp_path / "llama")))
    depths = {layer: layer - layout.pre_exit for layer in exits}
    inside = [depth for depth in depths.values() if 0 < depth < LAYERS]
    assert sorted(found) == sorted(inside) == list(conversion.depths)
    assert len([note for note in conversion.notes if "left out" in note]) == len(exits) - len(found)
    for i, (layer, branch) in enumerate(exits.items()):
        if (depth := depths[layer]) not in found:
            continue
        expected = exit_logits(model, branch, depth, TOKENS)[:, :VOCABULARY]
        ours = logits(tmp_path / "llama", depth)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
        assert found[depth].metadata.temperature == 1.0 + 0.25 * i
        assert found[depth].path.name == f"exit-{depth:02d}.safetensors"


def test_with_a_tokenizer_the_folder_runs(tmp_path: Path) -> None:
    """The command copies the tokenizer, cuts the padding by it, and the engine runs an exit."""
    layout = Layout((2,), ("mlp", "norm"), arguments={"vocab_size": None})
    make(tmp_path / "megatron", layout)
    small_tokenizer(tmp_path / "tokenizer")
    result = CliRunner().invoke(
        app,
        [
            *("models", "convert", str(tmp_path / "megatron"), str(tmp_path / "llama")),
            *("--tokenizer", str(tmp_path / "tokenizer")),
        ],
    )
    assert result.exit_code == 0, result.output
    model = open_model(str(tmp_path / "llama"))
    assert (model.config.vocab_size, model.eos_tokens) == (100, {0})
    engine = make_engine(tmp_path / "llama", 2, exit_file=find_exits(model)[2])
    [generation] = engine.generate(prompts("abc"), SamplingSpec(max_tokens=2, ignore_eos=True))
    assert (engine.facts.exit, generation.completion_tokens) == ("mlp", 2)


def test_the_end_of_a_document_is_kept(tmp_path: Path) -> None:
    """Megatron's SentencePieceTokenizer ends texts with a token of its own, after the pieces."""
    arguments = {"vocab_size": None, "tokenizer_type": "SentencePieceTokenizer"}
    make(tmp_path / "megatron", Layout((2,), arguments=arguments))
    small_tokenizer(tmp_path / "tokenizer")
    convert(tmp_path / "megatron", tmp_path / "llama", tmp_path / "tokenizer")
    model = open_model(str(tmp_path / "llama"))
    assert model.config.vocab_size == 103
    assert 102 in model.eos_tokens


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    """Shards with an index hold what one file holds."""
    make(tmp_path / "megatron", LAYOUTS["mlp-split"])
    convert(tmp_path / "megatron", tmp_path / "one")
    convert(tmp_path / "megatron", tmp_path / "many", shard_bytes=100_000)
    with Checkpoint(tmp_path / "one") as one, Checkpoint(tmp_path / "many") as many:
        assert len(many.files) > 2
        assert set(one.entries) == set(many.entries)
        for name in one.entries:
            assert torch.equal(one.read(name), many.read(name))


def test_stretched_positions(tmp_path: Path) -> None:
    """Megatron's interpolation of positions is Llama's linear rope scaling."""
    arguments = {"rotary_seq_len_interpolation_factor": 2}
    make(tmp_path / "megatron", Layout((2,), arguments=arguments))
    convert(tmp_path / "megatron", tmp_path / "llama")
    rotary = open_model(str(tmp_path / "llama")).config.layers[0].rotary
    assert rotary is not None and (rotary.theta, rotary.linear_factor) == (10_000, 2)


def test_names_of_older_checkpoints(tmp_path: Path) -> None:
    """Norms were called layernorms before 2023; a folder of one iteration can be named too."""
    model, _ = make(tmp_path / "megatron", LAYOUTS["norm"])
    folder = tmp_path / "megatron" / "iter_0000007"
    file = folder / "mp_rank_00" / "model_optim_rng.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(file, weights_only=True)
    language = state["model"]["language_model"]
    language["encoder"] = {
        name.replace("input_norm", "input_layernorm").replace("final_norm", "final_layernorm"): x
        for name, x in language["encoder"].items()
    }
    torch.save(state, file)
    convert(folder, tmp_path / "llama")
    with torch.inference_mode():
        expected = model(TOKENS[None]).logits[0, :, :VOCABULARY]
        torch.testing.assert_close(logits(tmp_path / "llama", LAYERS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
@torch.inference_mode()
def test_balcony_has_a_layer_per_exit(tied: bool, tmp_path: Path) -> None:
    """Exits of one decoder layer and norm each, with their own head or the model's."""
    torch.manual_seed(0)
    layout = Layout((1, 3), ("block", "norm"), kv_heads=2)
    model = llama(layout)
    exits = branches(model, layout)
    write_balcony(tmp_path / "balcony", model, exits, tied)
    tokenizer().save_pretrained(tmp_path / "balcony")
    convert(tmp_path / "balcony", tmp_path / "llama")
    expected = model(TOKENS[None]).logits[0]
    torch.testing.assert_close(logits(tmp_path / "llama", LAYERS), expected, atol=1e-4, rtol=0)
    found = find_exits(open_model(str(tmp_path / "llama")))
    assert {depth: exit_file.metadata.kind for depth, exit_file in found.items()} == {
        1: "layer:1",
        3: "layer:1",
    }
    for depth, branch in exits.items():
        if tied:
            branch.head = None
        expected = exit_logits(model, branch, depth, TOKENS)
        ours = logits(tmp_path / "llama", depth)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
