"""The simulated engine: its requests have the paper's shares, its seconds are the roofline's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from helios_batch.cli import app
from helios_batch.engine.memory import weight_bytes
from helios_batch.errors import SpecError
from helios_batch.helios.controller import REACTIONS, Reaction
from helios_batch.simulate.ablations import escalation, observe
from helios_batch.simulate.adaptive import SimulatedHelios
from helios_batch.simulate.chips import A100_40GB, H100, Chip
from helios_batch.simulate.comparison import footprint
from helios_batch.simulate.costs import Costs, Machine
from helios_batch.simulate.engine import Row, SimulatedEngine, run_fixed
from helios_batch.simulate.models import (
    CODELLAMA,
    LLAMA2,
    OPT_LARGE,
    OPT_SMALL,
    THRESHOLD,
    SimulatedModel,
)
from helios_batch.simulate.requests import Requests, draw_requests
from helios_batch.simulate.result import Tally
from helios_batch.simulate.settings import BATCHES, HOST, PAIR, ROOFLINE, run_helios
from helios_batch.spec_policy import PolicySpec

POLICY = PolicySpec(type="helios", reprofile=40)
MACHINES = (HOST, ROOFLINE, *BATCHES)


@pytest.fixture(scope="module")
def requests() -> Requests:
    return draw_requests(PAIR, 160, 0)


def test_the_sizes_of_the_models() -> None:
    """Parameters are those of the checkpoints' names; OPT's second matrix of positions included."""
    sizes = [weight_bytes(m.config, m.config.num_layers, 2) / 2e9 for m in (*PAIR, CODELLAMA)]
    assert sizes == pytest.approx([1.32, 6.66, 33.7], rel=0.01)
    assert weight_bytes(LLAMA2.config, 80, 2) / 2e9 == pytest.approx(69.0, rel=0.01)


def test_requests_have_the_shares_of_the_paper() -> None:
    """74 % of OPT-1.3B's tokens leave by layer 6, 57 % of the others by layer 9 of OPT-6.7B; 92 %
    leave early on either."""
    drawn = draw_requests(PAIR, 1500, 0)
    small, large = (np.array(drawn.confidences[m.name]) >= THRESHOLD for m in PAIR)
    assert small.mean(axis=1) == pytest.approx(OPT_SMALL.sure, abs=0.01)
    assert large.mean(axis=1) == pytest.approx(OPT_LARGE.sure, abs=0.01)
    assert large[0][~small[0]].mean() == pytest.approx(0.57, abs=0.015)
    assert (small[1] | large[1]).mean() == pytest.approx(0.92, abs=0.01)
    share = OPT_LARGE.sure[0]
    agrees = share * 0.97 + (1 - share) * OPT_LARGE.agrees_unsure
    assert agrees == pytest.approx(0.85)


def test_requests_that_follow_each_other_are_alike(requests: Requests) -> None:
    """For one model: the shares of sure tokens of neighbours correlate."""
    drawn = draw_requests(PAIR, 1500, 1)
    sure = [np.mean(np.array(drawn.of("OPT-1.3B", 0, row)) >= 0.8) for row in range(drawn.count)]
    assert np.corrcoef(sure[:-1], sure[1:])[0, 1] > 0.5
    assert draw_requests(PAIR, 160, 0) == requests != draw_requests(PAIR, 160, 1)


@given(
    st.sampled_from([OPT_SMALL, OPT_LARGE, CODELLAMA, LLAMA2]),
    st.sampled_from([A100_40GB, H100]),
    st.integers(1, 24),
    st.integers(1, 512),
    st.integers(0, 10**6),
    st.floats(0, 1e-3),
)
def test_a_step_takes_what_is_slowest(
    model: SimulatedModel, chip: Chip, layers: int, batch: int, stored: int, host: float
) -> None:
    """Never less than reading, multiplying or launching alone; more of anything takes no less."""
    costs = Costs(model, Machine(chip, host, 1))
    seconds = costs.decode(layers, 1, batch, stored)
    config, peak = costs.model.config, costs.machine.chip
    head = config.vocab_size * config.hidden_size
    weights = weight_bytes(config, layers, 2) - (1 if config.tied_head else 2) * head * 2
    kv = stored * layers * config.kv_elements_per_token * 2
    read = (0.99 * weights + kv) / peak.bandwidth if config.position_offset is None else 0
    assert seconds >= max(read, (layers + 1) * host)
    assert seconds >= 2 * batch * head / peak.flops
    assert seconds <= costs.decode(layers + 1, 1, batch, stored)
    assert seconds <= costs.decode(layers, 2, batch + 1, stored + 1)


def test_one_token_at_the_speed_of_memory() -> None:
    """A step of one sequence reads the weights once: 2.6 GB of OPT-1.3B at 1,555 GB/s."""
    seconds = Costs(OPT_SMALL, ROOFLINE).decode(24, 1, 1, 0)
    assert seconds == pytest.approx((24 * 12 * 2048**2 + 50272 * 2048) * 2 / 1.555e12, rel=0.01)
    assert Costs(OPT_SMALL, HOST).decode(24, 1, 1, 0) == pytest.approx(0.025)


@pytest.mark.parametrize("machine", MACHINES)
def test_each_token_comes_out_once(requests: Requests, machine: Machine) -> None:
    """Whatever the policy and however it moves, inside the chip's memory and the batch it holds."""
    fixed = [run_fixed(model, machine, requests, t) for model in PAIR for t in (None, 0.8)]
    found = [*fixed, *(run_helios(machine, requests, POLICY, models=[m]) for m in PAIR)]
    found.append(run_helios(machine, requests, POLICY))
    for result in found:
        assert result.tokens == requests.tokens
        assert result.memory <= machine.chip.memory
        assert result.batch <= machine.max_batch
        assert result.earliest + result.all_layers <= 1
        assert result.profile_seconds + result.load_seconds < result.seconds
    assert [result.all_layers for result in fixed] == pytest.approx([1, 0.21, 1, 0.225], abs=0.05)
    if machine.max_batch == 1:
        assert fixed[1].tokens_per_second > 1.5 * fixed[0].tokens_per_second
        assert fixed[0].token_seconds * fixed[0].tokens < fixed[0].seconds


def test_a_batch_is_as_deep_as_its_slowest_token(requests: Requests) -> None:
    """With exits for each token, one that is unsure everywhere has the others wait."""
    costs = Costs(OPT_SMALL, BATCHES[0])
    seconds = []
    for place in (0, 2):
        leave_at = [0, place] + [0] * requests.tokens
        engine = SimulatedEngine(costs, 2, requests, map(Row, range(9)), leave_at)
        engine.step(Tally())
        second = engine.step(Tally())
        assert second is not None
        seconds.append(second.seconds)
    assert seconds[1] > 2 * seconds[0]


def test_rows_that_memory_holds_no_longer_go_on_later(requests: Requests) -> None:
    """Deeper, fewer rows have room; the others keep what they have written."""
    machine = Machine(A100_40GB, 0.0, 4096, sequence_tokens=8192)
    rows = [Row(row) for row in range(160)]
    engine, tally = SimulatedEngine(Costs(OPT_SMALL, machine), 0, requests, rows), Tally()
    engine.step(tally)
    before = len(engine.running)
    engine.move_to(2)
    assert len(engine.running) == engine.limit < before
    while engine.step(tally) is not None:
        assert len(engine.running) <= engine.limit
    assert tally.tokens == requests.tokens
    assert all(row.written == requests.outputs(row.row) for row in rows)


@pytest.mark.parametrize("machine", BATCHES)
def test_what_the_table_expects_of_batches(requests: Requests, machine: Machine) -> None:
    """A token of the candidate that has never served costs in the batches that memory holds what
    the table says, within a factor of 2; in profiles it took several times as much."""
    job = SimulatedHelios(PAIR, machine, requests, PolicySpec(type="helios"))
    job.run()
    table = job.controller.history
    assert not any(depth.served.tokens for depth in table.models[OPT_LARGE.name].depths)
    for place in range(len(OPT_LARGE.depths)):
        rows, tally = map(Row, range(requests.count)), Tally()
        engine = SimulatedEngine(Costs(OPT_LARGE, machine), place, requests, rows)
        while engine.step(tally) is not None:
            pass
        took = tally.seconds / tally.tokens
        assert 0.5 < table.token_seconds(OPT_LARGE.name, place) / took < 2
        assert table.models[OPT_LARGE.name].tried_seconds(place) > 4 * took


@pytest.mark.parametrize("seed", range(3))
def test_a_hard_slice_of_a_batch_moves_nothing(seed: int) -> None:
    """A quarter of all tokens is unsure, and of some hundred rows that follow each other over half:
    in windows of a hundred tokens, these would move a thousand rows."""
    job = draw_requests(PAIR, 1500, seed)
    found = run_helios(BATCHES[0], job, PolicySpec(type="helios"), models=[OPT_SMALL])
    assert (found.reactions, found.batch) == (0, 1010)


@pytest.mark.parametrize("reactions", [REACTIONS, frozenset({"deepen"}), frozenset()])
def test_ablated_moves(requests: Requests, reactions: frozenset[Reaction]) -> None:
    """A policy makes no other moves than those that it is allowed."""
    found = run_helios(HOST, requests, POLICY.model_copy(update={"threshold": 0.95}), reactions)
    assert set(found.moves) <= {"choose", *reactions}


def test_memory_of_large_models() -> None:
    """CodeLlama-34B at 16 of 48 layers runs some 15 times the rows; Llama2-70B fits at all."""
    shallow = footprint(CODELLAMA, H100)
    assert 14 < shallow.batches[1] / shallow.batches[0] < 18
    assert footprint(LLAMA2, H100).batches[0] == 0 < footprint(LLAMA2, H100).batches[1]


def test_escalation(requests: Requests) -> None:
    """More may differ, less is paid; a cascade costs no more than one depth and what is loaded."""
    observed = observe(requests, BATCHES[0])
    points = escalation(requests, BATCHES[0])
    assert [point.cascade for point in points] == sorted((p.cascade for p in points), reverse=True)
    assert all(p.cascade <= p.one_depth + observed.loads.sum() for p in points)
    assert any(p.cascade < 0.8 * p.one_depth for p in points)
    assert observed.losses.mean(axis=1)[0] == pytest.approx(0.15, abs=0.02)


def test_the_command(tmp_path: Path) -> None:
    """A table, or JSON; with plots, a picture and its figures each."""
    arguments = ["bench", "policy", "--simulate", "--requests", "20"]
    run = CliRunner().invoke(app, [*arguments, "--json", "--plots", str(tmp_path / "plots")])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert {line["published"] for line in found["lines"]} >= {"1.48x", "15.14x", "220 ms"}
    assert found["requests"] == 20
    written = {path.name for path in (tmp_path / "plots").iterdir()}
    names = ("without", "threshold", "reprofile", "window", "escalation")
    assert written == {"ablations.json", *(f"{name}.png" for name in names)}
    assert "no switch" in (tmp_path / "plots" / "ablations.json").read_text()
    assert "published" in CliRunner().invoke(app, arguments).stdout
    with pytest.raises(SpecError, match="say what to compare"):
        CliRunner().invoke(app, ["bench", "policy"], catch_exceptions=False)
