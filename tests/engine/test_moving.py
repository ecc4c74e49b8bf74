"""Moving to other depths and models under running sequences, in float32."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helios_batch.engine.engine import Engine
from helios_batch.engine.sequence import Written
from helios_batch.models.exits.file import find_exits
from helios_batch.models.folder import open_model
from helios_batch.records import Generation, Prompt
from helios_batch.spec import SamplingSpec
from tests.support.engines import make_engine
from tests.support.exits import add_exit
from tests.support.tiny import edit_config, make_model

TEXTS = ["the quick brown fox", "lazy", "over the dog, a fox jumps", "a dog"] * 3
ROWS = [Prompt(row, text) for row, text in enumerate(TEXTS)]
GREEDY = SamplingSpec(max_tokens=12, ignore_eos=True)


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that may be left at any layer, with two trained exits."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    edit_config(folder, helios_exits="every_layer")
    return Path(folder)


def run_moving(engine: Engine, moves: dict[int, int], folder: Path) -> list[Generation]:
    """Generate, moving to the given depth before the given steps."""
    exits = find_exits(open_model(str(folder)))
    results, running = engine.start(ROWS, GREEDY)
    assert running is not None
    steps = 0
    while True:
        if steps in moves:
            running.move_to(moves[steps], exits.get(moves[steps]))
            running.settle()  # where it takes effect does not depend on the disk
        if running.step() is None:
            break
        steps += 1
    results |= {s.index: engine.generation(s) for s in running.finished}
    return [results[index] for index in range(len(ROWS))]


def engines_of(folder: Path, depths: set[int]) -> dict[int, Engine]:
    """Return an engine at each of the depths."""
    exits = find_exits(open_model(str(folder)))
    return {d: make_engine(folder, d, exit_file=exits.get(d), memory="64MiB") for d in depths}


def replay(engines: dict[int, Engine], found: Generation, prompt: Prompt) -> tuple[int, ...]:
    """Return what engines say that have been at each token's depth from the start."""
    assert found.exit is not None
    said = []
    for place, depth in enumerate(found.exit.token_layers):
        engine, tokens = engines[depth], found.token_ids[:place]
        text, digest = engine.tokenizer.decode(tokens), engine.tokenizer.digest
        before = Written(text, tokens, digest, carried=tokens)
        next_one = SamplingSpec(max_tokens=place + 1, ignore_eos=True)
        _, running = engine.start([prompt], next_one, {0: before})
        assert running is not None
        assert len(running.step() or []) == 1
        [sequence] = running.finished
        said += sequence.tokens
    return tuple(said)


@pytest.mark.parametrize("kind", ["native", "bridge", "layer:1"])
@pytest.mark.parametrize("moves", [{6: 2}, {3: 4}, {2: 2, 7: 4}, {4: 3, 9: 1}], ids=str)
def test_tokens_after_a_move_are_those_of_that_depth(
    model: Path, kind: str, moves: dict[int, int]
) -> None:
    """Deepened in flight or cut off, each token is what its depth says from the start."""
    if kind != "native":
        for depth in (1, 2):
            add_exit(model, kind, depth, (3,) if kind == "bridge" else ())
    exits = find_exits(open_model(str(model)))
    engine = make_engine(model, 1, exit_file=exits.get(1), states=True)
    found = run_moving(engine, moves, model)
    left = {layer for g in found if g.exit for layer in g.exit.token_layers}
    assert left == {1, *moves.values()}
    engines = engines_of(model, left)
    for generation, prompt in list(zip(found, ROWS, strict=True))[::5]:
        assert generation.exit is not None
        assert generation.exit.reactions
        assert generation.token_ids == replay(engines, generation, prompt)


def test_deepening_in_place_prefills_nothing(model: Path) -> None:
    """Keys and values stay, also of a row whose prompt is half done; none are computed twice."""
    engine = make_engine(model, 1, states=True)
    _, running = engine.start(ROWS, GREEDY)
    assert running is not None
    for _ in range(5):
        running.step()
    before = [(s.index, s.prefilled, s.length) for s in running.unfinished]
    spent = engine.stats.prefill_seconds
    running.move_to(4, None)
    running.settle()
    assert [(s.index, s.prefilled, s.length) for s in running.unfinished] == before
    running.step()
    assert engine.stats.prefill_seconds == spent
    assert engine.stats.longest_stall > 0


def test_a_tight_budget_sends_rows_back(model: Path) -> None:
    """What a deeper model has no room for waits and is prefilled again, to the same end."""
    deep = make_engine(model, 2, states=True).plan
    needed = deep.weights + deep.activations + 6 * deep.kv_per_token * 32
    engine = make_engine(model, 1, states=True, memory=needed)
    assert engine.plan.batch_size >= 6
    found = run_moving(engine, {4: 2}, model)
    engines = engines_of(model, {1, 2})
    for generation, prompt in list(zip(found, ROWS, strict=True))[::5]:
        assert generation.token_ids == replay(engines, generation, prompt)


def test_another_model_goes_on_with_what_is_written(model: Path, tmp_path: Path) -> None:
    """Under another tokenizer too, a row's text so far is kept, and its tokens are counted once."""
    other = tmp_path / "other"
    make_model(other, "llama3", seed=1)
    first, second = make_engine(model, 2), make_engine(other)
    _, running = first.start(ROWS[:3], GREEDY)
    assert running is not None
    for _ in range(4):
        running.step()
    before = {s.index: first.written(s) for s in running.unfinished}
    results, running = second.start(ROWS[:3], GREEDY, before)
    assert running is not None
    while running.step() is not None:
        pass
    for sequence in running.finished:
        found = second.generation(sequence)
        assert found.exit is not None
        assert found.text is not None
        assert found.text.startswith(before[sequence.index].text)
        assert found.completion_tokens == len(found.exit.token_layers) == 12
        assert set(found.exit.token_layers) == {2, 4}
        alone = first.generate(ROWS[sequence.index : sequence.index + 1], GREEDY)
        assert found.prompt_tokens == alone[0].prompt_tokens
    assert not results
