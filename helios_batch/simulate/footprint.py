"""What memory holds of a model, at full depth and at its shallowest exit (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from helios_batch.simulate.chips import Chip
from helios_batch.simulate.costs import Costs, Machine
from helios_batch.simulate.models import SimulatedModel
from helios_batch.simulate.settings import BATCHES


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
