"""The adaptive engine, sent to places by a script: no row is lost, and all that moved is noted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from helios_batch.adaptive.engine import AdaptiveEngine
from helios_batch.adaptive.sizes import sizes
from helios_batch.engine.contender import Contender
from helios_batch.engine.device import resolve
from helios_batch.engine.sole import SoleEngine
from helios_batch.errors import ModelError
from helios_batch.helios.controller import Controller
from helios_batch.helios.history import History
from helios_batch.helios.select import Ahead, Place
from helios_batch.job import Candidate
from helios_batch.models.folder import open_model
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import FinishReason, Progress, Prompt
from helios_batch.spec import ResourceSpec, SamplingSpec
from helios_batch.spec_policy import PolicySpec
from tests.support.engines import watch_for_doubles
from tests.support.tiny import edit_config, make_model

NANO = "helios-nano-docs"
POLICY = PolicySpec(type="helios", threshold=0.5, window=4, limit=3, reprofile=20, requests=3)
ROWS = [Prompt(row, f"The {row}th fox is a quick and lazy dog.") for row in range(24)]
SAMPLING = SamplingSpec(max_tokens=10, ignore_eos=True)


class Script(Controller):
    """Goes to the next place of a list every so many tokens, whatever these are like."""

    def __init__(self, history: History, places: list[Place], every: int) -> None:
        super().__init__(POLICY, "throughput", history)
        self._places, self._every, self._seen = places, every, 0

    def saw(self, confidences: Iterable[float], ahead: Callable[[], Ahead]) -> Place | None:
        self._seen += len(list(confidences))
        if self._seen < self._every or not self._places:
            return None
        self._seen = 0
        assert ahead().tokens >= 1
        before, place = self.now, self._places.pop(0)
        assert before is not None
        return self._go("deepen" if before.model == place.model else "switch", place, ahead(), 1.0)


@pytest.fixture
def other(tmp_path: Path) -> str:
    """A tiny model with another tokenizer than the nano models, to be left at any layer."""
    folder = tmp_path / "other"
    make_model(folder, "llama3")
    edit_config(folder, helios_exits="every_layer")
    return str(folder)


def contenders(*names: str) -> dict[str, Contender]:
    """Return candidates as a job makes them."""
    found = {}
    for name in names:
        model = open_model(name)
        tokenizer = Tokenizer(model.path, datetime(2026, 1, 2, tzinfo=UTC))
        depths = Candidate(model, {}).depths
        found[name] = Contender(model, tokenizer, {}, depths, 64, "probability")
    return found


def adaptive(
    names: tuple[str, ...],
    places: list[Place],
    every: int = 30,
    memory: int = 96 << 20,
    max_batch: int = 6,
) -> AdaptiveEngine:
    resources = resolve(ResourceSpec(dtype="float32", memory=memory, max_batch=max_batch))
    by_name = contenders(*names)
    history = History({name: sizes(c, resources) for name, c in by_name.items()})
    script = Script(history, places, every)
    return AdaptiveEngine(
        SoleEngine(by_name, resources, True), script, POLICY, len(ROWS), lambda: None
    )


@pytest.mark.parametrize(
    "moves",
    [
        [(0, 1), (0, 3)],
        [(1, 0), (0, 1), (1, 3)],
        [(0, 2), (1, 2), (1, 0), (0, 3), (0, 0)],
    ],
    ids=str,
)
def test_every_row_comes_through_moves(other: str, moves: list[tuple[int, int]]) -> None:
    """Deepened, cut off and switched over to another tokenizer: rows are whole, and say so."""
    names = (NANO, other)
    engine = adaptive(names, [Place(names[model], depth) for model, depth in moves])
    steps: list[int] = []
    found = engine.generate(ROWS, SAMPLING, lambda progress: steps.append(progress.rows_done))
    assert [row.row for row in found] == [prompt.row for prompt in ROWS]
    assert steps == sorted(steps)
    assert steps[-1] == len(ROWS)
    reacted = 0
    for row in found:
        assert row.exit is not None
        assert row.finish_reason is FinishReason.LENGTH
        assert row.completion_tokens == len(row.exit.token_layers) == 10
        assert row.exit.breaches == sum(c < 0.5 for c in row.exit.token_confidences)
        reacted += bool(row.exit.reactions)
        assert len(set(row.exit.token_layers)) <= 1 + len(row.exit.reactions)
    assert reacted
    made = engine.controller.moves
    assert engine.stats.moves.total() == len(made) >= len(moves)
    scripted = [move for move in made if move.kind != "choose"]
    assert [(m.after.model, m.after.depth) for m in scripted] == [(names[m], d) for m, d in moves]
    engines = {(facts.model, facts.layers_loaded) for facts in engine.stats.engines}
    assert {(row.exit.model, row.exit.token_layers[-1]) for row in found if row.exit} <= engines
    assert engine.stats.profile_seconds > 0


def test_labels_move_between_windows(other: str) -> None:
    """A labelled row counts as one token; each has the layers of the place it was labelled at."""
    names = (NANO, other)
    engine = adaptive(names, [Place(other, 1), Place(other, 3), Place(NANO, 0)], every=4)
    found = engine.label(ROWS, [" yes", " no", " perhaps"])
    assert [row.row for row in found] == [prompt.row for prompt in ROWS]
    assert {row.exit.model for row in found if row.exit} == set(names)
    assert all(row.label in (" yes", " no", " perhaps") for row in found)
    assert engine.stats.moves["switch"] + engine.stats.moves["deepen"] == 3


def test_a_profile_observes_all_exits(other: str) -> None:
    """Each candidate is run on the same few rows; full depth agrees with itself."""
    engine = adaptive((NANO, other), [])
    engine.generate(ROWS, SAMPLING)
    for name in (NANO, other):
        history = engine.controller.history.models[name]
        assert {request.tokens for request in history.requests} == {10}
        assert history.agreement(len(history.depths) - 1) == 1
        assert sum(history.exit_distribution()) == pytest.approx(1)
        assert history.perplexity > 1
        assert history.bytes_read > 0
        for place, bins in enumerate(history.reliability):
            assert sum(count for _, count in bins) == 10 * len(history.requests), place
    rows = [
        {request.row for request in model.requests}
        for model in engine.controller.history.models.values()
    ]
    assert rows[0] == rows[1]


def test_a_row_that_cannot_run_is_an_error(other: str) -> None:
    """An empty prompt gives an error in its place, profiled or not, and the others run."""
    engine = adaptive((other,), [Place(other, 3)])
    rows = [Prompt(row, "" if row % 2 else "the fox") for row in range(12)]
    found = engine.generate(rows, SAMPLING)
    assert [row.error is None for row in found] == [row % 2 == 0 for row in range(12)]


def test_exits_folder_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    """A candidate without exits runs at full depth only."""
    folder = shutil.copytree(tiny, tmp_path / "plain")
    assert Candidate(open_model(str(folder)), {}).depths == (4,)
    engine = adaptive((str(folder),), [])
    found = engine.generate(ROWS[:8], SAMPLING)
    assert {layer for row in found if row.exit for layer in row.exit.token_layers} == {4}


def weights_of(name: str) -> Path:
    return open_model(name).path / "model.safetensors"


@pytest.mark.parametrize("after", [1, 3])
def test_weights_that_are_gone_end_the_call_and_not_the_engine(other: str, after: int) -> None:
    """What can't be read is said; once it is back, the rows run where they were to run."""
    engine = adaptive((other,), [Place(other, after), Place(other, 0)], every=20)
    engine.generate(ROWS[:4], SAMPLING)
    weights = weights_of(other)
    moved = weights.rename(weights.with_name("gone"))
    with pytest.raises(ModelError, match="safetensors"):
        for _ in range(3):
            engine.generate(ROWS, SAMPLING)
    moved.rename(weights)
    found = engine.generate(ROWS, SAMPLING)
    assert [row.row for row in found] == [prompt.row for prompt in ROWS]
    place = engine.controller.now
    assert place is not None
    assert engine.facts.layers_loaded == 1 + place.depth


def test_a_call_that_is_broken_off_leaves_nothing_behind(other: str) -> None:
    """Whoever watches may end a call while layers are being read: the next one is whole."""
    engine = adaptive((other,), [Place(other, 3)], every=8)
    engine.controller.skip_profile()
    engine.controller.now = Place(other, 0)

    def end(progress: Progress) -> None:
        if engine.controller.moves:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        engine.generate(ROWS, SAMPLING, end)
    found = engine.generate(ROWS, SAMPLING)
    assert {layer for row in found if row.exit for layer in row.exit.token_layers} == {4}
    assert engine.stats.decode_tokens == len(ROWS) * 9
    loaded = engine._sole.current._loaded
    assert loaded.cache.tokens == loaded.plan.kv_tokens


def test_a_row_without_room_elsewhere_keeps_the_others(other: str) -> None:
    """A depth for which a row under way has no room is gone to after it."""
    resources = resolve(ResourceSpec(dtype="float32", memory="1GiB"))
    contender = contenders(other)[other]
    plan = contender.plan(4, resources, 1 << 30, True)
    memory = plan.weights + plan.activations + 64 * plan.kv_per_token
    engine = adaptive((other,), [Place(other, 3)], every=4, memory=memory, max_batch=256)
    engine.controller.skip_profile()
    engine.controller.now = Place(other, 0)
    long = Prompt(0, "a b c d " * 25)
    [found] = engine.generate([long], SAMPLING)
    assert found.exit is not None
    assert found.exit.token_layers == (1,) * 10
    [after] = engine.generate(ROWS[:1], SAMPLING)
    assert after.exit is not None
    assert after.exit.token_layers == (4,) * 10


def test_what_is_ahead_is_no_more_than_rows_may_come_to(other: str) -> None:
    """Rows under way are no reason to expect more tokens than a row may have."""
    engine = adaptive((other,), [])
    said: list[int] = []

    def saw(confidences: Iterable[float], ahead: Callable[[], Ahead]) -> None:
        said.append(ahead().tokens)

    engine.controller.saw = saw  # type: ignore[method-assign]
    engine.generate(ROWS, SAMPLING)
    assert max(said) <= len(ROWS) * 10


def test_sampled_rows_draw_on_where_another_goes_on(other: str, tmp_path: Path) -> None:
    """Switched between two copies of a model, a sampled row is what it is without a switch."""
    copy = str(shutil.copytree(other, tmp_path / "copy"))
    sampling = SamplingSpec(max_tokens=10, ignore_eos=True, temperature=0.8, seed=3)
    texts = []
    for moves in ((), (Place(copy, 3), Place(other, 3), Place(copy, 3))):
        engine = adaptive((other, copy), list(moves))
        engine.controller.skip_profile()
        engine.controller.now = Place(other, 3)
        found = engine.generate(ROWS, sampling)
        assert engine.stats.moves.total() == len(moves)
        texts.append([row.token_ids for row in found])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("is_label", [False, True])
def test_memory_holds_one_model_at_a_time(
    other: str, monkeypatch: pytest.MonkeyPatch, is_label: bool
) -> None:
    """What was there before is gone when other weights are read, in profiles and moves."""
    counts = watch_for_doubles(monkeypatch)
    places = [Place(other, 1), Place(NANO, 0), Place(other, 3), Place(other, 0)]
    engine = adaptive((NANO, other), places, every=4 if is_label else 30)
    if is_label:
        engine.label(ROWS, [" yes", " no"])
    else:
        engine.generate(ROWS, SAMPLING)
    assert len(engine.controller.moves) >= 4
    assert len(counts) > 6
    assert not any(counts)
