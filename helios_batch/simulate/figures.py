"""The paper's figures and the simulation's, side by side, and what lies between (no torch).

Source: HELIOS, arXiv 2504.10724.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helios_batch.simulate.costs import Costs
from helios_batch.simulate.footprint import Footprint
from helios_batch.simulate.models import THRESHOLD
from helios_batch.simulate.requests import Requests
from helios_batch.simulate.result import PolicyResult
from helios_batch.simulate.settings import HOST, PAIR, Setting


@dataclass(frozen=True)
class Line:
    """A figure: as simulated with the host's and with the chip's time, as published, and why."""

    figure: str
    simulated: tuple[str, str]
    published: str
    because: str


_PUBLISHED_EARLY = 1.16


def _pair(told: Iterable[str]) -> tuple[str, str]:
    first, second = told
    return first, second


def _ratio(found: PolicyResult, base: PolicyResult) -> float:
    return found.tokens_per_second / base.tokens_per_second


def _unprofiled(found: PolicyResult, base: PolicyResult) -> float:
    """Return the ratio if profiles took no time."""
    seconds = found.seconds - found.profile_seconds
    return found.tokens / seconds / base.tokens_per_second


def speeds(host: Setting, roofline: Setting) -> list[Line]:
    """Return the figures of time: for the host's time and the chip's."""
    both = (host, roofline)
    small, large = (_pair(f"{_ratio(s.helios, s.early[m]):.2f}x" for s in both) for m in (0, 1))
    free = [" and ".join(f"{_unprofiled(s.helios, s.early[m]):.2f}x" for s in both) for m in (0, 1)]
    share = host.helios.profile_seconds / host.helios.seconds
    return [
        Line(
            "throughput over ee on OPT-1.3B",
            small,
            "1.48x",
            "profiles: five requests, one after the other, at full depth on both models; without "
            f"their time {free[0]}. By bytes, layer 9 of OPT-6.7B is dearer than all of OPT-1.3B: "
            "a second model gains nothing",
        ),
        Line(
            "throughput over ee on OPT-6.7B",
            large,
            "2.13x",
            f"the same; without profiles {free[1]}. The paper's time goes by layers, as a host's: "
            "by bytes a layer of OPT-6.7B is four times dearer",
        ),
        Line(
            "end to end over vanilla",
            _pair(f"{_ratio(s.helios, s.vanilla[0]) - 1:+.0%}" for s in both),
            "+45 %",
            "ee gains more over vanilla here than in the paper, and HELIOS with it",
        ),
        Line(
            "ee on OPT-1.3B over vanilla",
            _pair(f"{_ratio(s.early[0], s.vanilla[0]) - 1:+.0%}" for s in both),
            "+16 %",
            "looking at an exit costs its head only, and keys and values of skipped layers cost "
            f"nothing; +16 % is what {_look(host):.0f} ms more for each look would leave (host)",
        ),
        Line(
            "time a token, against ee on each",
            _pair(
                ", ".join(f"{s.helios.token_seconds / e.token_seconds - 1:+.1%}" for e in s.early)
                for s in both
            ),
            "up to -46.6 %",
            "as for throughput; profiles and loading are left out",
        ),
        Line(
            "a profile (reading weights)",
            _pair(
                f"{s.helios.profile_seconds / s.helios.profiles:.1f} s ({_reading():.0f} ms)"
                for s in both
            ),
            "220 ms",
            f"whole answers at full depth and looking at their exits count, {share:.0%} of all "
            "time (host); the paper's is near what reading both models' first exits takes",
        ),
    ]


def _look(host: Setting) -> float:
    """Return the milliseconds that each look at an exit would take if ee gained what the paper's
    does over vanilla."""
    early, vanilla = host.early[0], host.vanilla[0]
    looks = early.earliest + 3 * early.all_layers + 2 * (1 - early.earliest - early.all_layers)
    missing = 1 / (_PUBLISHED_EARLY * vanilla.tokens_per_second) - 1 / early.tokens_per_second
    return 1e3 * missing / looks


def _reading() -> float:
    """Return the milliseconds of reading both models' shallowest depths."""
    costs = [Costs(model, HOST) for model in PAIR]
    return 1e3 * sum(c.load(c.history().depths[0].weights) for c in costs)


def shares(requests: Requests, host: Setting, roofline: Setting) -> list[Line]:
    """Return the figures that are shares and counts of tokens."""
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
            "tokens leave where the model is loaded to, sure or not: it is the share of what ran "
            "there. By bytes, OPT-1.3B is deepened where the paper switches to OPT-6.7B",
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
            "deepened (chip)",
        ),
        Line(
            f"reactions in {requests.count:,} requests",
            _pair(str(s.helios.reactions) for s in both),
            "6",
            "how long hard stretches last, and how hard they are, is assumed; other seeds give "
            "others",
        ),
        Line(
            "perplexity",
            _pair(f"{s.helios.agreement:.1%} agree" for s in both),
            "+0.01",
            "no text is simulated; tokens that are full depth's, by the paper's shares",
        ),
    ]


def sizes(footprints: Sequence[Footprint]) -> list[Line]:
    """Return the figures of memory."""
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
