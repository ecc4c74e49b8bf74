"""What can't be converted: hostile and damaged shards, models that are no Llama with exits."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_batch.errors import ModelError
from helios_batch.models.convert.convert import convert
from tests.support.balcony import write_balcony
from tests.support.megatron import Layout, branches, llama, make
from tests.support.tiny import edit_config, tokenizer

SPLIT = Layout((1, 2, 3), tensor=2, pipeline=2, kv_heads=2)


class Hostile:
    """Runs a command when it is unpickled the careless way."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


class Plain:
    """Does nothing, but is not ours to know."""


def hostile(file: Path) -> None:
    with file.open("wb") as stream:
        pickle.dump({"args": Hostile()}, stream, protocol=2)


def hostile_zip(file: Path) -> None:
    torch.save({"args": argparse.Namespace(model=Hostile()), "model": {}}, file)


def other_class(file: Path) -> None:
    torch.save({"args": argparse.Namespace(kind=Plain()), "model": {}}, file)


def gone(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])


def no_model(file: Path) -> None:
    torch.save({"args": argparse.Namespace()}, file)


@pytest.mark.parametrize("shard", ["mp_rank_00_000", "mp_rank_01_001"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (hostile, "the pickle asks for (posix|nt).system; only tensors"),
        (hostile_zip, "the pickle asks for (posix|nt).system; only tensors"),
        (other_class, "the pickle asks for tests.models.test_convert_refusals.Plain"),
        (gone, r"the shard of tensor rank \d, pipeline stage \d is missing"),
        (cut, "can't be read"),
        (no_model, "argument normalization|no model.language_model"),
    ],
)
def test_bad_shards_are_refused(
    damage: Callable[[Path], None], message: str, shard: str, in_folder: Path
) -> None:
    """Code is never run, errors say which shard, and nothing is left where the target would be."""
    make(in_folder / "megatron", SPLIT)
    damage(in_folder / "megatron" / "iter_0000007" / shard / "model_optim_rng.pt")
    with pytest.raises(ModelError, match=message):
        convert(in_folder / "megatron", in_folder / "out" / "llama")
    assert not (in_folder / "owned").exists()
    assert not (in_folder / "out").exists() or not any((in_folder / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"normalization": "LayerNorm"}, "normalization"),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type"),
        ({"swiglu": False}, "swiglu"),
        ({"add_bias_linear": True}, "add_bias_linear"),
        ({"rotary_percent": 0.5}, "rotary_percent"),
        ({"num_experts": 8}, "num_experts"),
        ({"virtual_pipeline_model_parallel_size": 2}, "virtual_pipeline"),
        ({"exit_layer_nums": []}, "no exits"),
        ({"exit_layer_nums": [9]}, "exit_layer_nums"),
        ({"pre_exit": True, "use_exit_mlp": True}, "exclude each other"),
        ({"untie_exit_output_weights": False}, "share the embedding"),
        ({"num_layers": "4"}, "num_layers"),
        ({"norm_epsilon": "small"}, "norm_epsilon"),
        ({"exit_layer_nums": 1}, "exit_layer_nums"),
        ({"exit_layer_temperature": [1.0, 2.0]}, "exit_layer_temperature"),
        ({"group_query_attention": True, "num_query_groups": 3}, "num_query_groups"),
        ({"num_layers": 3}, "nobody asked for"),
        ({"ffn_hidden_size": 128}, "dense_h_to_4h"),
        ({"use_exit_norm": False}, "nobody asked for encoder.layers.0.exit_norm"),
        ({"use_exit_block": True}, "there is no encoder.layers.0.exit_block"),
        ({"vocab_size": 500}, "500 tokens"),
    ],
)
def test_other_models_are_refused(arguments: dict[str, Any], named: str, tmp_path: Path) -> None:
    """What is no Llama, or is not what its arguments say, is named and leaves nothing behind."""
    make(tmp_path / "megatron", Layout((1,), arguments=arguments))
    with pytest.raises(ModelError, match=named):
        convert(tmp_path / "megatron", tmp_path / "out" / "llama")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"exit_decoder_layer": False}, "exit_decoder_layer"),
        ({"exit_layer_indices": "all"}, "exit_layer_indices"),
        ({"exit_layer_indices": [1, 4]}, "exit_layer_indices"),
        ({"exit_layer_indices": [1, 2, 3]}, "an exit has no 0.input_layernorm.weight"),
        ({"tie_exit_lm_head": True}, "nobody asked for model.exit_modules.0.2.weight"),
    ],
)
def test_other_exits_than_balconys_are_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """A config that does not fit the tensors is named and leaves nothing behind."""
    layout = Layout((1, 3), ("block", "norm"))
    model = llama(layout)
    write_balcony(tmp_path / "balcony", model, branches(model, layout), tied=False)
    tokenizer().save_pretrained(tmp_path / "balcony")
    edit_config(tmp_path / "balcony", **changes)
    with pytest.raises(ModelError, match=named):
        convert(tmp_path / "balcony", tmp_path / "out" / "llama")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_target_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    """Nothing is overwritten; a folder without a checkpoint is said to have none."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        convert(tmp_path, tmp_path / "llama")
    with pytest.raises(ModelError, match="no checkpoint with exits"):
        convert(tmp_path, tmp_path / "other")
