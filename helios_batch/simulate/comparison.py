"""All policies on jobs of the paper's size (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from helios_batch.simulate.chips import A100_40GB, H100
from helios_batch.simulate.figures import Line, shares, sizes, speeds
from helios_batch.simulate.footprint import Footprint, footprint
from helios_batch.simulate.models import CODELLAMA, LLAMA2, OPT_LARGE, OPT_SMALL
from helios_batch.simulate.requests import draw_requests
from helios_batch.simulate.settings import BATCHES, HOST, PAIR, ROOFLINE, Setting, run_all

_IN_BATCHES = 4


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


def compare(count: int, seed: int) -> Comparison:
    """Simulate all policies on a job of so many requests, and four times as many in batches."""
    requests = draw_requests(PAIR, count, seed)
    host, roofline = run_all(HOST, requests), run_all(ROOFLINE, requests)
    more = draw_requests(PAIR, _IN_BATCHES * count, seed)
    batches = tuple(run_all(machine, more) for machine in BATCHES)
    footprints = tuple(
        footprint(model, chip)
        for model in (OPT_SMALL, OPT_LARGE, CODELLAMA, LLAMA2)
        for chip in (A100_40GB, H100)
    )
    lines = (*speeds(host, roofline), *shares(requests, host, roofline), *sizes(footprints))
    return Comparison(count, seed, lines, footprints, host, roofline, batches)
