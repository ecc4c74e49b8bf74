"""The paper's figures and the simulation's, side by side (no torch).

Source: HELIOS, arXiv 2504.10724.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from helios_batch.simulate.chips import A100_40GB, H100, Chip
from helios_batch.simulate.costs import Costs, Machine
from helios_batch.simulate.models import (
    CODELLAMA,
    LLAMA2,
    OPT_LARGE,
    OPT_SMALL,
    THRESHOLD,
    SimulatedModel,
)
from helios_batch.simulate.requests import Requests, draw_requests
from helios_batch.simulate.result import PolicyResult
from helios_batch.simulate.settings import BATCHES, HOST, PAIR, ROOFLINE, Setting, run_all

REQUESTS = 1087
"""Of the paper's run."""
_IN_BATCHES = 4


@dataclass(frozen=True)
class Line:
    """A figure: as simulated with the host's and with the chip's time, as published, and why."""

    figure: str
    simulated: tuple[str, str]
    published: str
    because: str


@dataclass(frozen=True)
class Footprint:
    """What memory holds of a model on a chip at full depth and at its shallowest exit.

    Args:
        batches: sequences at once at full depth and at the exit; 0: not one.
        memory: bytes of weights and of the KV cache of one sequence.
    """

    model: str
    chip: str
    layers: tuple[int, int]
    batches: tuple[int, int]
    memory: tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """All that was simulated."""

    requests: int
    seed: int
    lines: tuple[Line, ...]
    footprints: tuple[Footprint, ...]
    host: Setting
    roofline: Setting
    batches: tuple[Setting, ...]


def compare(count: int = REQUESTS, seed: int = 0) -> Comparison:
    """Simulate all policies on a job of the paper's size, and four such jobs in batches."""
    requests = draw_requests(PAIR, count, seed)
    host, roofline = run_all(HOST, requests), run_all(ROOFLINE, requests)
    more = draw_requests(PAIR, _IN_BATCHES * count, seed)
    batches = tuple(run_all(machine, more) for machine in BATCHES)
    footprints = tuple(
        footprint(model, chip)
        for model in (OPT_SMALL, OPT_LARGE, CODELLAMA, LLAMA2)
        for chip in (A100_40GB, H100)
    )
    lines = (*_speeds(host, roofline), *_shares(requests, host, roofline), *_sizes(footprints))
    return Comparison(count, seed, lines, footprints, host, roofline, batches)


def footprint(model: SimulatedModel, chip: Chip) -> Footprint:
    """Return what memory holds of a model, as the memory planner says."""
    machine = Machine(chip, 0.0, BATCHES[0].max_batch)
    depths = Costs(model, machine).history().depths
    full, exit_ = depths[-1], depths[0]
    stored = machine.sequence_tokens
    return Footprint(
        model.name,
        chip.name,
        layers=(full.layers, exit_.layers),
        batches=(full.batch, exit_.batch),
        memory=(
            full.weights + stored * full.kv_per_token,
            exit_.weights + stored * exit_.kv_per_token,
        ),
    )


def _pair(told: Iterable[str]) -> tuple[str, str]:
    first, second = told
    return first, second


def _ratio(found: PolicyResult, base: PolicyResult) -> float:
    return found.tokens_per_second / base.tokens_per_second


def _unprofiled(found: PolicyResult, base: PolicyResult) -> float:
    """Return the ratio if profiles took no time."""
    seconds = found.seconds - found.profile_seconds
    return found.tokens / seconds / base.tokens_per_second


def _speeds(host: Setting, roofline: Setting) -> list[Line]:
    both = (host, roofline)
    small, large = ([f"{_ratio(s.helios, s.early[m]):.2f}x" for s in both] for m in (0, 1))
    free = [f"{_unprofiled(host.helios, host.early[m]):.2f}x" for m in (0, 1)]
    over = [f"{_ratio(s.helios, s.vanilla[0]) - 1:+.0%}" for s in both]
    alone = [f"{_ratio(s.early[0], s.vanilla[0]) - 1:+.0%}" for s in both]
    waits = [
        f"{s.helios.token_seconds / s.early[0].token_seconds - 1:+.1%}, "
        f"{s.helios.token_seconds / s.early[1].token_seconds - 1:+.1%}"
        for s in both
    ]
    profiles = [
        f"{s.helios.profile_seconds / s.helios.profiles:.2f} s ({_reading():.0f} ms)" for s in both
    ]
    profiled = host.helios.profile_seconds / host.helios.seconds
    return [
        Line(
            "throughput over ee on OPT-1.3B",
            (small[0], small[1]),
            "1.48x",
            f"profiles: five requests, one after the other, at full depth on both models; without "
            f"their time (host) {free[0]}",
        ),
        Line(
            "throughput over ee on OPT-6.7B",
            (large[0], large[1]),
            "2.13x",
            f"the same; without it {free[1]}. The paper's time goes by layers, as a host's does: "
            "by bytes, OPT-6.7B is four times dearer",
        ),
        Line(
            "end to end over vanilla",
            (over[0], over[1]),
            "+45 %",
            "see ee: an exit that saves what its layers cost gives more than the paper has",
        ),
        Line(
            "ee on OPT-1.3B over vanilla",
            (alone[0], alone[1]),
            "+16 %",
            "looking at an exit costs its head only here: no wait for the chip to tell, no missing "
            "keys and values to compute",
        ),
        Line(
            "time a token, against ee on each",
            (waits[0], waits[1]),
            "up to -46.6 %",
            "as for throughput, profiles and loading left out",
        ),
        Line(
            "a profile (reading weights)",
            (profiles[0], profiles[1]),
            "220 ms",
            f"whole answers at full depth and their exits are counted, {profiled:.0%} of all time "
            "(host); reading the exits of both models alone takes what the paper says",
        ),
    ]


def _reading() -> float:
    """Return the milliseconds of reading both models' shallowest depths."""
    costs = [Costs(model, HOST) for model in PAIR]
    return 1e3 * sum(c.load(c.history().depths[0].weights) for c in costs)


def _shares(requests: Requests, host: Setting, roofline: Setting) -> list[Line]:
    both = (host, roofline)
    alone = host.early[0].earliest
    none = sum(
        all(c < THRESHOLD for c in exits)
        for exits in zip(*(c for m in PAIR for c in requests.confidences[m.name][:-1]), strict=True)
    )
    return [
        Line(
            "tokens at the earliest exit",
            _pair(f"{s.helios.earliest:.1%}" for s in both),
            "91 %",
            "by bytes it deepens OPT-1.3B where the paper switches to OPT-6.7B",
        ),
        Line(
            "the same on OPT-1.3B alone, ee",
            _pair(f"{s.early[0].earliest:.1%}" for s in both),
            "73 %",
            f"an input (74 %); as drawn {alone:.1%}",
        ),
        Line(
            "tokens that need all layers",
            _pair(f"{s.helios.all_layers:.1%}" for s in both),
            "7.39 %",
            f"of the drawn tokens {none / requests.tokens:.1%} have no sure exit on either model; "
            "what runs through all layers is mostly answers of profiles (host), and OPT-1.3B "
            "deepened (roofline)",
        ),
        Line(
            f"reactions in {requests.count:,} requests",
            _pair(str(s.helios.reactions) for s in both),
            "6",
            "how long hard stretches last and how hard they are is assumed, and a way back leads "
            "to further ones",
        ),
        Line(
            "perplexity",
            _pair(f"{s.helios.agreement:.1%} agree" for s in both),
            "+0.01",
            "no text is simulated; tokens that are full depth's, by the paper's shares",
        ),
    ]


def _sizes(footprints: tuple[Footprint, ...]) -> list[Line]:
    batches = [f for f in footprints if f.batches[0]]
    most = max(batches, key=lambda f: f.batches[1] / f.batches[0])
    least = min(footprints, key=lambda f: f.memory[1] / f.memory[0])
    ratio = f"{most.batches[1] / most.batches[0]:.2f}x"
    saved = f"{least.memory[1] / least.memory[0] - 1:.1%}"
    return [
        Line(
            "batch size, up to",
            (ratio, ratio),
            "15.14x",
            f"{most.model} on {most.chip}, {most.batches[0]} to {most.batches[1]:,} sequences at "
            f"{most.layers[1]} of {most.layers[0]} layers; hangs on the bytes that activations "
            "leave beside the full weights",
        ),
        Line(
            "memory, up to",
            (saved, saved),
            "-67.4 %",
            f"{least.model} at {least.layers[1]} of {least.layers[0]} layers, weights and one "
            "sequence; activations, which are the same at each depth, are not counted",
        ),
    ]
