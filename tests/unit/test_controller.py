"""The loop: when it profiles, where it goes, what it writes down, and when it stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helios_batch.helios.controller import REACTIONS, Controller, Reaction
from helios_batch.helios.history import History
from helios_batch.helios.select import Ahead, Place, held, move_seconds
from helios_batch.spec_policy import PolicySpec
from tests.support.histories import histories, model

POLICY = PolicySpec(type="helios", window=10, limit=5, reprofile=40)
SHALLOW, FULL, OTHER = Place("a", 0), Place("a", 1), Place("b", 0)
AHEAD = Ahead(1000)


def controller(
    other: float = 100.0, reactions: frozenset[Reaction] = REACTIONS, sure: float = 0.9
) -> Controller:
    """One that runs `a` at its first depth; `b` is a full model of the given cost of a token."""
    history = History({"a": model((1.0, 4), (10.0, 2), sure=sure), "b": model((other, 1))})
    made = Controller(POLICY, "throughput", history, reactions)
    assert made.choose(AHEAD) == SHALLOW
    return made


def saw(made: Controller, unsure: int, tokens: int = 10) -> Place | None:
    return made.saw([0.1] * unsure + [0.9] * (tokens - unsure), lambda: AHEAD)


def test_profiles() -> None:
    """One is due at the start, unless it is skipped, and again after so many rows."""
    made = Controller(POLICY, "throughput", History({"a": model((1.0, 1))}))
    assert made.profile_due
    made.skip_profile()
    assert not made.profile_due
    for _ in range(2):
        made.choose(AHEAD)
        for _ in range(POLICY.reprofile):
            assert not made.profile_due
            made.finished(0.9)
        assert made.profile_due
    assert [(move.kind, move.before, move.after) for move in made.moves] == [
        ("choose", None, Place("a", 0))
    ]


def test_a_profile_after_a_drift() -> None:
    """Rows that look unlike those before bring the next profile forward."""
    made = controller()
    for row in range(32):
        made.finished(0.8 + 0.1 * (row % 2))
    assert not made.profile_due
    for _ in range(7):
        made.finished(0.2)
    assert made.profile_due


def test_its_own_moves_are_no_drift() -> None:
    """Deeper, rows are surer: that says nothing of the job."""
    made = controller()
    for row in range(32):
        made.finished(0.4 + 0.1 * (row % 2))
    assert saw(made, 10) == FULL
    for _ in range(7):
        made.finished(0.99)
    assert not made.profile_due


def test_breaches_deepen_or_switch() -> None:
    """Whichever is cheaper; the move says why, and what it was expected to take."""
    for other, after, kind in ((100.0, FULL, "deepen"), (5.0, OTHER, "switch")):
        made = controller(other)
        assert saw(made, 5) is None
        assert saw(made, 8) == made.now == after
        move = made.moves[-1]
        assert (move.kind, move.before, move.after, move.breaches) == (kind, SHALLOW, after, 0.8)
        assert move.seconds == move_seconds(made.history, SHALLOW, after, 0) > 0


@given(st.lists(st.integers(0, 10), max_size=40), st.frozensets(st.sampled_from(sorted(REACTIONS))))
def test_only_the_moves_that_it_may_make(
    windows: list[int], reactions: frozenset[Reaction]
) -> None:
    """Without reactions it stays where the profile has put it."""
    made = controller(5.0, reactions)
    moved = [saw(made, unsure) for unsure in windows]
    assert {move.kind for move in made.moves[1:]} <= reactions
    if not reactions:
        assert moved == [None] * len(windows)


def test_each_reaction_alone() -> None:
    """Deepening where switching would be cheaper, and the other way round."""
    assert saw(controller(5.0, frozenset({"deepen"})), 9) == FULL
    assert saw(controller(100.0, frozenset({"switch"})), 9) == OTHER


def test_a_batch_is_judged_as_a_whole() -> None:
    """Ten unsure rows of a batch of forty do not move it, wherever they stand; 21 do."""
    made = controller()
    assert saw(made, 10, tokens=40) is None
    assert saw(made, 20, tokens=40) is None
    assert saw(made, 21, tokens=40) == FULL
    assert made.moves[-1].breaches == 21 / 40


def test_the_way_back() -> None:
    """After four calm windows it tries fewer layers again; after a wrong try, eight."""
    made = controller()
    for patience in (4, 8, 16):
        assert saw(made, 10) == FULL
        assert [saw(made, 2) for _ in range(patience)] == [None] * (patience - 1) + [SHALLOW]
        assert made.moves[-1].kind == "return"
    stays = controller(reactions=REACTIONS - {"return"})
    assert saw(stays, 10) == FULL
    assert [saw(stays, 0) for _ in range(50)] == [None] * 50


def test_a_small_gain_moves_nothing() -> None:
    """After a profile it stays where another place would gain less than a tenth."""
    for work, after in ((0.95, SHALLOW), (0.5, OTHER)):
        made = controller()
        made.history.models["b"] = model((work, 1))
        assert made.choose(Ahead(10**6)) == after
        assert len(made.moves) == (1 if after == SHALLOW else 2)


def test_it_does_not_stay_where_it_is_unsure() -> None:
    """However small the gain, if the place at hand has too many breaches by now."""
    made = controller()
    made.history.models["a"] = model((1.0, 4), (1.01, 2), sure=0.1)
    assert made.choose(AHEAD) == FULL


@given(histories(), st.lists(st.floats(0, 1), max_size=60), st.data())
def test_the_log_is_a_path(history: History, confidences: list[float], data: st.DataObject) -> None:
    """Each move begins where the last one ended, leads elsewhere, and to what memory holds."""
    made = Controller(POLICY, "throughput", history)
    made.choose(AHEAD)
    for at in range(0, len(confidences), 5):
        before = made.now
        after = made.saw(confidences[at : at + 5], lambda: AHEAD)
        assert made.now == (after or before)
        if data.draw(st.booleans()):
            made.choose(AHEAD)
    path = [None, *(move.after for move in made.moves)]
    assert [move.before for move in made.moves] == path[:-1]
    assert all(move.before != move.after for move in made.moves)
    assert set(path[1:]) <= set(held(history))
    assert made.now == path[-1]
