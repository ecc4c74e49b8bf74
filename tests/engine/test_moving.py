"""Moving to other depths and models under running sequences, in float32."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from helios_batch.engine.engine import Engine
from helios_batch.engine.loaded import LoadedModel
from helios_batch.engine.rows import left_off
from helios_batch.engine.sequence import Sequence, Written
from helios_batch.errors import ModelError, ResourceError
from helios_batch.models.exits.file import find_exits
from helios_batch.models.folder import open_model
from helios_batch.records import Generation, Prompt
from helios_batch.spec import SamplingSpec
from tests.support.engines import make_engine
from tests.support.exits import add_exit
from tests.support.tiny import edit_config, make_model, spaced_tokenizer

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


def test_an_exit_that_changes_layers_below_is_prefilled_for(model: Path) -> None:
    """What lies in the cache is of the layers as they were: under changed ones it is run anew."""
    add_exit(model, "bridge", 2, (3,))  # adapts layer 0
    engine = make_engine(model, 1, states=True)
    found = run_moving(engine, {4: 2}, model)
    engines = engines_of(model, {1, 2})
    for generation, prompt in list(zip(found, ROWS, strict=True))[::5]:
        assert generation.token_ids == replay(engines, generation, prompt)


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Have layers for a move be read only when the event is set."""
    event, read = Event(), LoadedModel.read

    def late(self: LoadedModel, *args: Any) -> Any:
        assert event.wait(60)
        return read(self, *args)

    monkeypatch.setattr(LoadedModel, "read", late)
    return event


def test_a_run_may_end_before_its_layers_are_read(model: Path, held_back: Event) -> None:
    """The model comes to the depth that it was told to, with all the memory of its plan."""
    engine = make_engine(model, 1, states=True)
    _, running = engine.start(ROWS, GREEDY)
    assert running is not None
    running.step()
    running.move_to(4, None)
    assert engine._loaded.cache.tokens < engine.plan.kv_tokens
    while running.step() is not None:
        assert running.is_moving
    held_back.set()
    running.close()
    assert engine.depth == engine.facts.layers_loaded == 4
    assert engine._loaded.cache.tokens == engine.plan.kv_tokens
    fresh = make_engine(model, 4, states=True)
    assert engine.plan == fresh.plan
    texts = [[row.text for row in e.generate(ROWS, GREEDY)] for e in (engine, fresh)]
    assert texts[0] == texts[1]


def test_layers_that_can_not_be_read_leave_the_model_as_it_was(model: Path) -> None:
    """The run ends with the error; the engine goes on at its depth, with its plan."""
    engine = make_engine(model, 1, states=True)
    expected = [row.text for row in engine.generate(ROWS, GREEDY)]
    _, running = engine.start(ROWS, GREEDY)
    assert running is not None
    running.step()
    weights = model / "model.safetensors"
    weights.rename(model / "gone")
    running.move_to(4, None)
    with pytest.raises(ModelError):
        running.settle()
    running.close()
    assert engine._loaded.cache.tokens == engine.plan.kv_tokens
    assert [row.text for row in engine.generate(ROWS, GREEDY)] == expected


@pytest.mark.parametrize("states", [True, False])
def test_a_row_too_long_for_a_depth_keeps_the_model_back(model: Path, states: bool) -> None:
    """A move for which a row under way has no room is refused, and nothing is lost by that."""
    plan = make_engine(model, 4, states=states).plan
    memory = plan.weights + plan.activations + 64 * plan.kv_per_token
    engine = make_engine(model, 1, states=states, memory=memory)
    assert engine.holds(4, None)
    _, running = engine.start([Prompt(0, "a b c d " * 25)], GREEDY)
    assert running is not None
    running.step()
    with pytest.raises(ResourceError):
        running.move_to(4, None)
    while running.step() is not None:
        pass
    [sequence] = running.finished
    assert sequence.layers == [1] * 12
    engine.move_to(4)
    assert engine.follow([Prompt(0, "a b c d " * 25), ROWS[0]], [[5, 6], [7]])[0] is None


def three_models(tmp_path: Path) -> list[Engine]:
    """Return an engine of the tiny tokenizer, and two of another one."""
    engines = []
    for name, replaced in (("one", False), ("two", True), ("three", True)):
        make_model(tmp_path / name, "smollm2", seed=len(name))
        if replaced:
            spaced_tokenizer().save_pretrained(tmp_path / name)
        engines.append(make_engine(tmp_path / name))
    return engines


def test_what_two_models_wrote_goes_on_to_a_third(tmp_path: Path) -> None:
    """It gets the whole text in its own tokens, also where it has the last one's tokenizer."""
    one, two, three = three_models(tmp_path)
    before: dict[int, Written] = {}
    for engine in (one, two):
        _, running = engine.start(ROWS[:1], GREEDY, before)
        assert running is not None
        for _ in range(4):
            running.step()
        [sequence] = running.unfinished
        before = {0: engine.written(sequence)}
    _, running = three.start(ROWS[:1], GREEDY, before)
    assert running is not None
    [sequence] = running.unfinished
    carried = sequence.prompt[-sequence.carried :]
    assert before[0].text.strip() == three.tokenizer.decode(carried).strip()
    assert len(before[0].tokens) == len(before[0].layers)


def test_no_space_is_lost_where_a_model_goes_on(tmp_path: Path) -> None:
    """A tokenizer that drops the first space of a text drops none in the midst of it."""
    _, two, _ = three_models(tmp_path)
    ids = two.tokenizer.encode_plain(["the quick brown fox"])[0]
    prompt = two.tokenizer.encode_plain(["dog"])[0]
    for cut in range(1, len(ids)):
        head = tuple(ids[:cut])
        before = Written(two.tokenizer.decode(head), head, two.tokenizer.digest, carried=head)
        first = Sequence(0, 0, [*prompt, *head], GREEDY, 9, frozenset(), None, before, len(head))
        first.tokens, first.layers, first.confidences = ids[cut:], [4], [0.5]
        assert left_off(first, two.tokenizer).text == "the quick brown fox"
        heard = two.tokenizer.stream(head)
        assert "".join(map(heard, ids[cut:])) == "the quick brown fox"[len(before.text) :]


@pytest.mark.parametrize(("tail", "kept"), [(1, 0), (2, 0), (3, 0), (4, 4), (9, 9)])
def test_half_a_character_is_taken_back(model: Path, tail: int, kept: int) -> None:
    """Bytes that no further ones make a character are text as they stand."""
    engine = make_engine(model)
    [lead, *_] = engine.tokenizer.encode_plain(["\U0001f600"])[0]
    [fox] = engine.tokenizer.encode_plain(["fox"])
    sequence = Sequence(0, 0, [5], GREEDY, 20, frozenset(), None)
    for token in [*fox, *[lead] * tail]:
        sequence.append(token, 4, 0.5)
    written = engine.written(sequence)
    assert written.tokens == (*fox, *[lead] * kept)
    assert len(written.layers) == len(written.confidences) == len(written.tokens)
