"""Exit heads in the engine, against transformers' own layers put together by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helios_batch.engine.engine import Engine
from helios_batch.errors import ModelError, ResourceError
from helios_batch.models.catalog import has_native_exits
from helios_batch.models.exits.file import find_exits, open_exit, write_exit
from helios_batch.models.folder import open_model
from helios_batch.records import Prompt
from helios_batch.spec import SamplingSpec
from tests.support.engines import make_engine, prompts
from tests.support.exits import add_exit, metadata, random_exit, reference_logits
from tests.support.tiny import edit_config, make_model, tokenizer

TEXTS = ["the quick brown fox", "lazy", "over the dog, a fox jumps"]
GREEDY = SamplingSpec(max_tokens=8, ignore_eos=True)
EXITS: dict[str, tuple[int, tuple[int, ...]]] = {
    "norm": (2, ()),
    "bridge": (1, (2, 3)),
    "mlp": (2, ()),
    "layer:1": (2, ()),
}


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to add exits to."""
    return shutil.copytree(tiny, tmp_path / "model")


def with_exit(folder: Path, depth: int, **options: Any) -> Engine:
    """Load a model with the exit that lies beside it."""
    exit_file = find_exits(open_model(str(folder)))[depth]
    return make_engine(folder, depth, exit_file=exit_file, **options)


@pytest.mark.parametrize("kind", EXITS)
def test_exits_equal_transformers_layers(
    kind: str, model: Path, load_reference: Callable[[], Any]
) -> None:
    """Greedy tokens and their confidences are those of the same layers in transformers."""
    depth, tail = EXITS[kind]
    add_exit(model, kind, depth, tail, temperature=1.25)
    for generation, text in zip(
        with_exit(model, depth).generate(prompts(*TEXTS), GREEDY), TEXTS, strict=True
    ):
        assert generation.exit is not None
        ids = tokenizer()(text, return_tensors="pt")["input_ids"][0]
        whole = torch.cat([ids, torch.tensor(generation.token_ids)])
        logits = reference_logits(load_reference(), whole, depth, tail, random_exit(kind, tail))
        logits = logits[len(ids) - 1 : -1]
        assert generation.token_ids == tuple(logits.argmax(-1).tolist())
        expected = (logits / 1.25).softmax(-1).amax(-1)
        found = torch.tensor(generation.exit.token_confidences)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert set(generation.exit.token_layers) == {depth}


def test_margin_is_the_lead_over_the_next(model: Path, load_reference: Callable[[], Any]) -> None:
    """Confidence `margin` is the difference of the two highest probabilities."""
    add_exit(model, "norm", 2)
    [generation] = with_exit(model, 2, confidence="margin").generate(prompts(TEXTS[0]), GREEDY)
    assert generation.exit is not None
    ids = tokenizer()(TEXTS[0], return_tensors="pt")["input_ids"][0]
    whole = torch.cat([ids, torch.tensor(generation.token_ids)])
    logits = reference_logits(load_reference(), whole, 2, (), random_exit("norm"))
    top = logits[len(ids) - 1 : -1].softmax(-1).topk(2).values
    found = torch.tensor(generation.exit.token_confidences)
    torch.testing.assert_close(found, top[:, 0] - top[:, 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_its_batch(model: Path, dtype: str) -> None:
    """With bridge, tail and deltas too, results are bit-identical in any batch."""
    add_exit(model, "bridge", 1, (2, 3))
    rows = [Prompt(row, text) for row, text in enumerate(TEXTS * 4)]
    expected = with_exit(model, 1, dtype=dtype).generate(rows, GREEDY)
    for batch in (1, 5):
        assert with_exit(model, 1, dtype=dtype, max_batch=batch).generate(rows, GREEDY) == expected


def test_full_depth_is_as_without_exits(model: Path, tiny: Path) -> None:
    """The weights at full depth are the checkpoint's bit for bit, whatever exits adapt."""
    before = make_engine(tiny).generate(prompts(*TEXTS), GREEDY)
    add_exit(model, "bridge", 1, (2, 3))
    with_exit(model, 1)
    after = make_engine(model).generate(prompts(*TEXTS), GREEDY)
    for old, new in zip(before, after, strict=True):
        assert old.exit is not None
        assert new.exit is not None
        assert old.token_ids == new.token_ids
        assert old.exit.token_confidences == new.exit.token_confidences


def test_only_what_an_exit_needs_is_read(model: Path) -> None:
    """Beside the loaded layers, the tail's are read from the model and no others."""
    add_exit(model, "bridge", 1, (3,))
    plain = make_engine(model, 1).facts
    found = with_exit(model, 1).facts
    layer = make_engine(model, 2).facts.weight_bytes_loaded - plain.weight_bytes_loaded
    assert found.weight_bytes_loaded == plain.weight_bytes_loaded + layer
    assert (found.layers_loaded, found.layers_run, found.exit) == (1, 2, "bridge")
    assert (plain.layers_run, plain.exit) == (1, "plain")


def test_the_tail_is_in_the_memory_plan(model: Path) -> None:
    """Tail layers take weights and KV cache, and a budget that does not hold them is refused."""
    add_exit(model, "bridge", 1, (2, 3))
    plain, found = make_engine(model, 1).plan, with_exit(model, 1).plan
    assert found.kv_per_token == 3 * plain.kv_per_token
    assert found.weights > plain.weights + 192 * 192 * 4
    tight = plain.weights + plain.activations + 4 * plain.kv_per_token * 32
    make_engine(model, 1, memory=tight)
    with pytest.raises(ResourceError, match="KV cache"):
        with_exit(model, 1, memory=tight)


def test_an_exit_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    """Exits belong to a model by the hash of its contents."""
    add_exit(model, "norm", 2)
    other = tmp_path / "other"
    make_model(other, "llama3", seed=1)
    with pytest.raises(ModelError, match="belongs to tiny") as error:
        open_exit(model / "exits" / "exit-02.safetensors", open_model(str(other)))
    assert "models tune" in error.value.fix


def test_a_model_made_to_be_left_anywhere_says_so(model: Path) -> None:
    """LayerSkip's models are known by name, others by their config; an exit file goes before."""
    assert has_native_exits("facebook/layerskip-llama3.2-1B", {})
    assert not has_native_exits("facebook/opt-125m", {"helios_exits": "some"})
    assert make_engine(model, 2).facts.exit == "plain"
    edit_config(model, helios_exits="every_layer")
    assert make_engine(model, 2).facts.exit == "native"
    assert make_engine(model).facts.exit == "full"
    add_exit(model, "norm", 2)
    assert with_exit(model, 2).facts.exit == "norm"


def test_exits_can_be_read_by_others(model: Path) -> None:
    """An exit file gets the permissions of any other new file."""
    add_exit(model, "norm", 2)
    (model / "other").touch()
    exit_file = model / "exits" / "exit-02.safetensors"
    assert exit_file.stat().st_mode == (model / "other").stat().st_mode


def test_damaged_exits_are_refused(model: Path) -> None:
    """No metadata, wild metadata, a missing, wrong or surplus tensor: each is said by name."""
    folder = open_model(str(model))
    path = model / "exits" / "exit-01.safetensors"
    good = random_exit("bridge", (3,))
    meta = metadata(model, 1, "bridge", tail=(3,))

    write_exit(path, meta, good)
    save_file(load_file(path), path)
    with pytest.raises(ModelError, match="not an exit file"):
        find_exits(folder)
    path.write_bytes(b"short")
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        find_exits(folder)
    for changed, message in [
        (good | {"bridge.weight": torch.zeros(3, 3)}, "bridge.weight"),
        (good | {"layers.7.qkv.weight": torch.zeros(3, 3)}, "nobody asked for"),
        (good | {"delta.2.qkv.down": torch.zeros(3, 3)}, "layer 2 is adapted, but not run"),
        ({k: v for k, v in good.items() if k != "delta.3.qkv.up"}, "delta.3.qkv"),
    ]:
        write_exit(path, meta, changed)
        with pytest.raises(ModelError, match=message):
            with_exit(model, 1)
    write_exit(path, metadata(model, 3, "bridge", tail=(1,)), good)
    with pytest.raises(ModelError, match="tail"):
        find_exits(folder)


def test_an_engine_that_moves_is_the_engine_of_that_depth(model: Path) -> None:
    """Deepened or cut off, in any order, it gives exactly what one loaded there gives; what an
    exit changes in the loaded layers is undone, and what does not fit is refused unharmed."""
    add_exit(model, "bridge", 2, (3,))
    add_exit(model, "layer:1", 1)
    exits = find_exits(open_model(str(model)))
    fresh = {depth: make_engine(model, depth, exit_file=exits.get(depth)) for depth in (1, 2, 3, 4)}
    expected = {d: engine.generate(prompts(*TEXTS), GREEDY) for d, engine in fresh.items()}
    moving = make_engine(model, 2, exit_file=exits[2])
    for depth in (2, 4, 1, 3, 2, 1, 4):
        moving.move_to(depth, exits.get(depth))
        assert moving.generate(prompts(*TEXTS), GREEDY) == expected[depth], depth
        assert moving.facts.layers_run == fresh[depth].facts.layers_run
        assert moving.plan == fresh[depth].plan
    needed = fresh[2].plan.weights + fresh[2].plan.activations + 64 * fresh[2].plan.kv_per_token
    tight = make_engine(model, 2, exit_file=exits[2], memory=needed)
    with pytest.raises(ResourceError, match="at 4 layers"):
        tight.move_to(4)
    assert tight.generate(prompts(*TEXTS), GREEDY) == expected[2]
