"""The engine of policy `ee` against token-by-token transformers modules, and against others."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from helios_batch.engine.memory import StepShape
from helios_batch.errors import ResourceError
from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.file import find_exits, write_exit
from helios_batch.models.folder import open_model
from helios_batch.records import ErrorCode, Generation, Prompt
from helios_batch.spec import Confidence, SamplingSpec
from tests.support.early_exit import ExitSetup, generate
from tests.support.engines import make_early_engine, make_engine, prompts
from tests.support.exits import metadata, random_exit
from tests.support.tiny import edit_config, tokenizer

TEXTS = [
    "the quick brown fox",
    "lazy",
    "over the dog, a fox jumps; the end of a long sentence " * 3,
    "q",
    "zebra 0123456789",
]
CHOICES = [" fox", "ck dog", "the", "z", " over the lazy dog 12"]
GREEDY = SamplingSpec(max_tokens=12, ignore_eos=True)
SAMPLED = GREEDY.model_copy(update={"temperature": 0.9, "top_k": 50, "seed": 3})
BRIDGE = {
    name: tensor
    for name, tensor in random_exit("bridge", (2, 3)).items()
    if not name.startswith("delta.0.")
}
NATIVE = {1: ExitSetup(), 2: ExitSetup(), 3: ExitSetup()}
TRAINED = {
    1: ExitSetup("bridge", (2, 3), BRIDGE, 0.9),
    2: ExitSetup("layer:1", (), random_exit("layer:1"), 5.0),
    3: ExitSetup("mlp", (), random_exit("mlp")),
}
LADDERS = {"native": NATIVE, "trained": TRAINED}
STOPS = ("M", "do", "mp", "{")
THRESHOLD = 0.05
"""Under which random weights let tokens leave everywhere."""


@pytest.fixture(params=LADDERS)
def exits(request: pytest.FixtureRequest) -> dict[int, ExitSetup]:
    """The exits of a tiny model."""
    return LADDERS[request.param]


@pytest.fixture
def model(tiny: Path, tmp_path: Path, exits: dict[int, ExitSetup]) -> Path:
    """A copy of the tiny model with these exits."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    add_exits(folder, exits)
    return folder


def add_exits(folder: Path, exits: dict[int, ExitSetup]) -> None:
    if exits is NATIVE:
        edit_config(folder, helios_exits="every_layer")
        return
    for depth, found in exits.items():
        own = int(found.kind == "layer:1")
        said = metadata(
            folder,
            depth,
            found.kind,
            tail=found.tail,
            own_layers=own,
            temperature=found.temperature,
            choice_temperature=1.25,
        )
        write_exit(folder / "exits" / f"{depth}.safetensors", said, dict(found.tensors))


def leaving_layers(generations: list[Generation]) -> set[int]:
    return {layer for g in generations if g.exit for layer in g.exit.token_layers}


def test_tokens_leave_as_in_a_loop_over_tokens(
    model: Path, exits: dict[int, ExitSetup], load_reference: Callable[[], Any]
) -> None:
    """Tokens, the layers where they leave, and confidences are those of one token at a time on
    transformers' modules with the state copied, alone and in a batch."""
    reference, rows = load_reference(), prompts(*TEXTS[:2], *TEXTS[3:])
    ids = [tokenizer()(prompt.content)["input_ids"] for prompt in rows]
    expected = [generate(reference, exits, row, 12, THRESHOLD) for row in ids]
    assert {left.layer for row in expected for left in row} == {1, 2, 3, 4}
    for batch in (1, 4):
        engine = make_early_engine(model, [*exits], THRESHOLD, max_batch=batch)
        for found, row in zip(engine.generate(rows, GREEDY), expected, strict=True):
            assert found.exit is not None
            sure = torch.tensor([left.confidence for left in row])
            assert (sure - THRESHOLD).abs().min() > 1e-4, "too close to tell"
            assert found.token_ids == tuple(left.token for left in row)
            assert found.exit.token_layers == tuple(left.layer for left in row)
            confidences = torch.tensor(found.exit.token_confidences)
            torch.testing.assert_close(confidences, sure, atol=1e-5, rtol=0)


@pytest.mark.parametrize("confidence", ["probability", "margin"])
def test_a_threshold_of_nothing_is_the_first_exit(
    model: Path, exits: dict[int, ExitSetup], confidence: Confidence
) -> None:
    """All tokens leave at once, exactly as on an engine of that depth alone."""
    exit_file = find_exits(open_model(str(model))).get(1)
    alone = make_engine(model, 1, exit_file=exit_file, confidence=confidence)
    early = make_early_engine(model, [*exits], 0.0, confidence)
    for sampling in (GREEDY, SAMPLED):
        expected = alone.generate(prompts(*TEXTS), sampling)
        assert early.generate(prompts(*TEXTS), sampling) == expected
    assert early.label(prompts(*TEXTS), CHOICES) == alone.label(prompts(*TEXTS), CHOICES)


def test_a_threshold_that_none_reaches_is_full_depth(
    model: Path, exits: dict[int, ExitSetup]
) -> None:
    """Passing exits that are never sure changes nothing, to the bit."""
    early, full = make_early_engine(model, [*exits], 1.0), make_engine(model)
    for sampling in (GREEDY, SAMPLED):
        assert early.generate(prompts(*TEXTS), sampling) == full.generate(prompts(*TEXTS), sampling)
    assert early.label(prompts(*TEXTS), CHOICES) == full.label(prompts(*TEXTS), CHOICES)


@pytest.mark.parametrize("exits", ["trained"], indirect=True)
@pytest.mark.parametrize(("dtype", "temperature"), [("float32", 0.9), ("bfloat16", 0.0)])
def test_a_row_does_not_depend_on_its_batch(model: Path, dtype: str, temperature: float) -> None:
    """Alone, where a token really stops at its exit, and in batches, where others go on, rows are
    the same to the bit, also when they leave at different times and long prompts come in chunks."""
    # stop strings make rows leave at different times, so that others move in the cache
    sampling = SAMPLED.model_copy(update={"temperature": temperature, "stop": STOPS})
    rows = [Prompt(row, text) for row, text in enumerate(TEXTS * 3)]
    shuffled = random.Random(0).sample(rows, len(rows))
    engine = make_early_engine(model, [1, 2, 3], THRESHOLD, dtype=dtype)
    engine.shape = StepShape(16, 32, 1)
    expected = engine.generate(rows, sampling)
    assert leaving_layers(expected) == {1, 2, 3, 4}
    assert len({g.completion_tokens for g in expected}) >= 3, "all rows leave together"
    for batch in (4, 64):
        engine.shape = StepShape(16, 32, batch)
        found = {g.row: g for g in engine.generate(shuffled, sampling)}
        assert [found[row.row] for row in rows] == expected
        assert engine.stats.largest_batch == min(batch, len(rows))


@pytest.mark.parametrize("chunk", [512, 16])
def test_a_label_leaves_where_it_is_sure(
    model: Path, exits: dict[int, ExitSetup], chunk: int
) -> None:
    """A row's label, probabilities and layer are those of the first engine of one depth that is
    sure of it, in any batch and when the tape comes in chunks."""
    threshold, rows = 0.7, prompts(*TEXTS)
    found = find_exits(open_model(str(model)))
    by_depth = []
    for depth in (*exits, 4):
        alone = make_engine(model, depth, exit_file=found.get(depth))
        alone.shape = StepShape(chunk, 2 * chunk, 64)
        by_depth.append(alone.label(rows, CHOICES))
    expected = [
        next(
            g for g in row if g.exit and (g.exit.token_confidences[0] >= threshold or g is row[-1])
        )
        for row in zip(*by_depth, strict=True)
    ]
    assert len(leaving_layers(expected)) >= 2
    early = make_early_engine(model, [*exits], threshold)
    for batch in (1, 64):
        early.shape = StepShape(chunk, 2 * chunk, batch)
        assert early.label(rows, CHOICES) == expected


def test_a_token_that_left_runs_no_further(
    model: Path, exits: dict[int, ExitSetup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At batch 1 a decode step runs the layers up to the token's exit and no more."""
    runs: list[int] = []
    layer = Decoder._layer

    def counted(self: Decoder, index: int, *rest: Any) -> torch.Tensor:
        runs.append(index)
        return layer(self, index, *rest)

    monkeypatch.setattr(Decoder, "_layer", counted)
    engine = make_early_engine(model, [*exits], THRESHOLD, max_batch=1)
    steps: list[list[int]] = []

    def step(_: object) -> None:
        steps.append(runs[:])
        runs.clear()

    [row] = engine.generate(prompts("lazy"), GREEDY, step)
    assert row.exit is not None
    assert len(set(row.exit.token_layers)) > 1
    for ran, left in zip(steps[1:], row.exit.token_layers[1:], strict=True):
        # exits count their own layers on from the model's
        assert [index for index in ran if index < 4] == list(range(left))


def test_what_runs_is_in_the_plan_and_the_facts(model: Path, exits: dict[int, ExitSetup]) -> None:
    """All layers and those of the exits have a KV cache; what an exit changes is held twice, what
    it leaves as it is once; a budget too small is refused."""
    early, full = make_early_engine(model, [*exits], THRESHOLD), make_engine(model)
    own = 3 if exits is TRAINED else 0
    assert early.plan.kv_per_token * 4 == full.plan.kv_per_token * (4 + own)
    assert (early.facts.layers_loaded, early.facts.layers_run) == (4, 4 + own)
    assert early.facts.exit == "ee"
    assert early.facts.weight_bytes_left == 0
    held = {
        tensor.data_ptr(): tensor.nbytes
        for rung in early._ladder.rungs
        for tensor in tensors_of((rung.decoder.weights, rung.decoder.exit))
    }
    assert 0.95 * early.plan.weights < sum(held.values()) <= early.plan.weights
    needed = early.plan.weights + early.plan.activations + 32 * early.plan.kv_per_token
    tight = make_early_engine(model, [*exits], THRESHOLD, memory=needed)
    assert tight.plan.batch_size == 1
    with pytest.raises(ResourceError, match="KV cache"):
        make_early_engine(model, [*exits], THRESHOLD, memory=needed - 1)


def tensors_of(found: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in a tree of dataclasses and sequences."""
    if isinstance(found, torch.Tensor):
        yield found
    elif is_dataclass(found):
        for field in fields(found):
            yield from tensors_of(getattr(found, field.name))
    elif isinstance(found, list | tuple):
        for item in found:
            yield from tensors_of(item)


def test_another_job_may_be_adopted(model: Path, exits: dict[int, ExitSetup]) -> None:
    """With other sequences the cache is planned anew, and rows are as before."""
    engine = make_early_engine(model, [*exits], THRESHOLD, memory="66MiB")
    expected, batch = engine.generate(prompts(*TEXTS), GREEDY), engine.plan.batch_size
    engine.adopt(engine.tokenizer, 128)
    assert engine.facts.batch_limit == engine.plan.batch_size < batch
    assert engine.generate(prompts(*TEXTS), GREEDY) == expected


def test_prompts_that_can_not_run_do_not_disturb_the_others(model: Path) -> None:
    """An error in that row alone."""
    engine = make_early_engine(model, [1, 2, 3], THRESHOLD)
    [alone] = engine.generate([Prompt(1, "fox")], GREEDY)
    found = engine.generate([Prompt(0, "0123456789 " * 30), Prompt(1, "fox")], GREEDY)
    assert found[0].error is not None
    assert found[0].error.code is ErrorCode.PROMPT_TOO_LONG
    assert found[1] == alone
