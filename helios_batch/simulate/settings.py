"""Where the simulated policies are compared, and running them there (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helios_batch.helios.controller import REACTIONS, Reaction
from helios_batch.simulate.adaptive import SimulatedHelios
from helios_batch.simulate.chips import A100_40GB, H100
from helios_batch.simulate.costs import Machine
from helios_batch.simulate.engine import run_fixed
from helios_batch.simulate.models import OPT_LARGE, OPT_SMALL, SimulatedModel
from helios_batch.simulate.requests import Requests
from helios_batch.simulate.result import PolicyResult
from helios_batch.spec_policy import PolicySpec

PAIR = (OPT_SMALL, OPT_LARGE)
_LAUNCH_SECONDS = 1e-3
_LARGEST_BATCH = 4096

HOST = Machine(A100_40GB, _LAUNCH_SECONDS, max_batch=1)
"""One request at a time, in eager PyTorch: a layer's kernels take the host a millisecond, so that
time goes by layers whatever their width (assumed; the paper's two ratios suggest it)."""
ROOFLINE = Machine(A100_40GB, 0.0, max_batch=1)
"""One request at a time, at the speed of the chip's memory."""
BATCHES = (Machine(A100_40GB, 0.0, _LARGEST_BATCH), Machine(H100, 0.0, _LARGEST_BATCH))
"""As many requests at once as memory holds, at the speed of the chip."""


@dataclass(frozen=True)
class Setting:
    """All policies on one job and machine.

    Args:
        vanilla: by model, all layers for each token.
        early: by model, policy ee.
        single: by model, policy helios-single.
        helios: on both models.
    """

    vanilla: tuple[PolicyResult, ...]
    early: tuple[PolicyResult, ...]
    single: tuple[PolicyResult, ...]
    helios: PolicyResult

    @property
    def results(self) -> tuple[PolicyResult, ...]:
        """Return all of them."""
        return (*self.vanilla, *self.early, *self.single, self.helios)


def run_all(machine: Machine, requests: Requests) -> Setting:
    """Run all policies, with the paper's settings, which are the defaults."""
    policy = PolicySpec(type="helios")
    return Setting(
        vanilla=tuple(run_fixed(model, machine, requests, None) for model in PAIR),
        early=tuple(run_fixed(model, machine, requests, policy.threshold) for model in PAIR),
        single=tuple(run_helios(machine, requests, policy, models=[model]) for model in PAIR),
        helios=run_helios(machine, requests, policy),
    )


def run_helios(
    machine: Machine,
    requests: Requests,
    policy: PolicySpec,
    reactions: Iterable[Reaction] = REACTIONS,
    models: Sequence[SimulatedModel] = PAIR,
) -> PolicyResult:
    """Run HELIOS once."""
    return SimulatedHelios(models, machine, requests, policy, reactions).run()
