"""Greedy loading: what is read, what is not, and what memory comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from helios_batch.engine.memory import weight_bytes
from helios_batch.errors import ModelError
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.folder import open_model
from helios_batch.models.weights import DecoderWeights, GreedyLoader
from tests.support.tiny import CONFIGS, make_model


def loader(
    folder: Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32
) -> GreedyLoader:
    model = open_model(str(folder))
    names = model.architecture.tensor_names
    return GreedyLoader(model.config, names, checkpoint, dtype, torch.device("cpu"))


def tensors(weights: DecoderWeights) -> list[torch.Tensor]:
    """All distinct tensors that are held."""
    found = {id(weights.embedding): weights.embedding, id(weights.head): weights.head}
    if weights.position_embedding is not None:
        found[0] = weights.position_embedding
    affines = [weights.final_norm]
    for layer in weights.layers:
        affines += [a for a in (getattr(layer, s) for s in layer.__slots__) if a is not None]
    for affine in affines:
        found[id(affine.weight)] = affine.weight
        if affine.bias is not None:
            found[id(affine.bias)] = affine.bias
    return list(found.values())


def stored_layer(name: str) -> int | None:
    """The layer that a Llama tensor belongs to."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_only_the_first_layers_are_read(tiny: Path, depth: int) -> None:
    """Bytes read and tensors materialised are those of layers 0..k-1 and of no other layer."""
    with Checkpoint(tiny) as checkpoint:
        loader(tiny, checkpoint).load(depth)
        wanted = [
            name
            for name in checkpoint.entries
            if stored_layer(name) is None or stored_layer(name) < depth  # type: ignore[operator]
        ]
        assert sorted(checkpoint.tensors_read) == sorted(wanted)
        assert checkpoint.bytes_read == sum(checkpoint.entries[name].size for name in wanted)


def test_deeper_layers_may_be_unreadable(tiny: Path, tmp_path: Path) -> None:
    """A file that ends where layer 2 begins still gives a model of two layers."""
    folder = tmp_path / "cut"
    shutil.copytree(tiny, folder)
    state = load_file(tiny / "model.safetensors")
    deep = {k: v for k, v in state.items() if (stored_layer(k) or 0) >= 2}
    shallow = {k: v for k, v in state.items() if k not in deep}
    save_file(shallow, folder / "model-1.safetensors")
    save_file(deep, folder / "model-2.safetensors")
    (folder / "model.safetensors").unlink()
    names = dict.fromkeys(shallow, "model-1.safetensors") | dict.fromkeys(
        deep, "model-2.safetensors"
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with Checkpoint(folder) as sharded, Checkpoint(tiny) as whole:
        # every byte of the second shard's data is gone before anything is read
        with (folder / "model-2.safetensors").open("r+b") as file:
            file.truncate(next(iter(sharded.entries[name].begin for name in sorted(deep))))
        ours = loader(folder, sharded).load(2)
        theirs = loader(tiny, whole).load(2)
        for left, right in zip(tensors(ours), tensors(theirs), strict=True):
            assert torch.equal(left, right)
        with pytest.raises(ModelError, match="the file ends"):
            loader(folder, sharded).deepen(ours, 4)


def test_deepening_reads_only_what_is_new(tiny: Path) -> None:
    """Deepening from 1 to 3 layers reads layers 1 and 2, and equals loading 3 at once."""
    with Checkpoint(tiny) as checkpoint, Checkpoint(tiny) as other:
        ours = loader(tiny, checkpoint)
        weights = ours.load(1)
        before = len(checkpoint.tensors_read)
        ours.deepen(weights, 3)
        new = {stored_layer(name) for name in checkpoint.tensors_read[before:]}
        assert new == {1, 2}
        for left, right in zip(tensors(weights), tensors(loader(tiny, other).load(3)), strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_truncating_gives_the_memory_back(tmp_path: Path, dtype: torch.dtype) -> None:
    """Resident memory falls by what the dropped layers held, also after deepening again."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=8,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    process = psutil.Process()
    decoder = open_model(str(tmp_path)).config
    layers = weight_bytes(decoder, 12, dtype.itemsize) - weight_bytes(decoder, 4, dtype.itemsize)
    with Checkpoint(tmp_path) as checkpoint:
        greedy = loader(tmp_path, checkpoint, dtype)
        weights = greedy.load(12)
        for _ in range(2):
            full = process.memory_info().rss
            greedy.truncate(weights, 4)
            assert len(weights.layers) == 4
            assert full - process.memory_info().rss > 0.9 * layers
            greedy.deepen(weights, 12)


def test_a_tied_head_may_be_stored_too(tmp_path: Path) -> None:
    """A checkpoint that repeats the embedding as its head shares one tensor in memory."""
    make_model(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        weights = loader(tmp_path, checkpoint).load(1)
    assert weights.head is weights.embedding


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("depth", [1, 4])
def test_planned_weights_are_the_loaded_bytes(kind: str, depth: int, tmp_path: Path) -> None:
    """The planner's formula counts exactly the bytes of the tensors that are held."""
    make_model(tmp_path, kind)
    with Checkpoint(tmp_path) as checkpoint:
        held = tensors(loader(tmp_path, checkpoint).load(depth))
    assert sum(t.nbytes for t in held) == weight_bytes(open_model(str(tmp_path)).config, depth, 4)


def test_checkpoint_reads_what_safetensors_reads(tiny: Path) -> None:
    """Our positioned reads give the library's tensors."""
    with Checkpoint(tiny) as ours, safe_open(tiny / "model.safetensors", "pt") as theirs:
        assert sorted(ours.entries) == sorted(theirs.keys())
        for name in ours.entries:
            assert torch.equal(ours.read(name), theirs.get_tensor(name))


def damage_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")


def truncate_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)


def truncate_data(folder: Path) -> None:
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 4096)


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def climb_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def drop_a_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors")


def wrong_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.weight"
    state[name] = state[name][:-1].clone()
    save_file(state, folder / "model.safetensors")


def another_head(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1
    save_file(state, folder / "model.safetensors")


def integers(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.int8)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_header, "not a whole safetensors file"),
        (truncate_header, "not a whole safetensors file"),
        (truncate_data, "beyond the end"),
        (lose_a_shard, "not in the folder"),
        (climb_out, "not in the folder"),
        (only_pickle, "never opened"),
        (drop_a_tensor, r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        (wrong_shape, "don't make up the shape"),
        (integers, "stored as I8"),
        (another_head, "tie_word_embeddings"),
    ],
)
def test_damaged_checkpoints_are_explained(damage: object, message: str, tmp_path: Path) -> None:
    """Each kind of damage is an error that names the file or tensor, never garbage output."""
    folder = tmp_path / "model"
    make_model(folder)
    assert callable(damage)
    damage(folder)
    with pytest.raises(ModelError, match=message), Checkpoint(folder) as checkpoint:
        loader(folder, checkpoint).load(4)
