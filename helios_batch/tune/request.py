"""What a tuning is asked to do, and how it is told apart from another (no torch)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helios_batch.errors import SpecError
from helios_batch.models.folder import ModelFolder
from helios_batch.spec import ResourceSpec

_KIND = re.compile(r"norm|mlp|bridge|layer:[1-4]")


@dataclass(frozen=True)
class TuneRequest:
    """What `models tune` is given.

    Args:
        model: pack, folder or hub id.
        data: specs or Parquet inputs; `rows` are drawn from them evenly.
        exits: depths to make exits at.
        output: folder that the exits are written to.
        rows: rows to run at full depth, a fifth of them held out.
        minutes: time for everything together; None trains until the curve is flat.
        kind: `norm`, `bridge`, `mlp` or `layer:N`.
        tail: the model's own last layers that a bridge ends in, or how many.
        rank: rank of the deltas on the tail's matrices; with 0 only bridge and norm are trained.
        adapt: loaded layers before each exit that get deltas too, in use only at this exit.
        seed: of the sample, the training order and the initial values.
        disk: bytes of disk for hidden states.
        resources: as in a spec.
    """

    model: str
    data: tuple[str, ...]
    exits: tuple[int, ...]
    output: Path
    rows: int = 1000
    minutes: float | None = None
    kind: str = "bridge"
    tail: int = 2
    rank: int = 32
    adapt: int = 0
    seed: int = 0
    disk: int = 8 << 30
    resources: ResourceSpec = field(default_factory=ResourceSpec)

    def check(self, model: ModelFolder) -> None:
        """Check the request against the model.

        Raises:
            SpecError: a depth, kind or size does not fit.
        """
        layers = model.config.num_layers
        deepest = layers - 1 - (self.tail if self.kind == "bridge" else 0)
        bad = [depth for depth in self.exits if not 1 <= depth <= deepest]
        if bad or not self.exits:
            raise SpecError(
                f"no exit can be made after layer {bad[0]}" if bad else "no exit is asked for",
                where="--exits",
                fix=f"{model.name} has {layers} layers; with --kind {self.kind} an exit can stand "
                f"after layer 1 to {deepest}",
            )
        if not _KIND.fullmatch(self.kind):
            raise SpecError(
                f"unknown kind of exit {self.kind!r}",
                where="--kind",
                fix="the kinds are norm, bridge, mlp and layer:1 to layer:4",
            )
        if self.adapt and (self.kind == "norm" or not self.rank):
            raise SpecError(
                f"--kind {self.kind} with --rank {self.rank} adapts no layers",
                where="--adapt",
                fix="leave it out, or give another --kind and a --rank",
            )
        if not 0 <= self.adapt <= min(self.exits):
            raise SpecError(
                f"{self.adapt} layers can't be adapted before an exit after layer "
                f"{min(self.exits)}",
                where="--adapt",
                fix=f"write 0 to {min(self.exits)}",
            )
        if self.kind == "bridge" and not 1 <= self.tail < layers:
            raise SpecError(
                f"a tail of {self.tail} layers",
                where="--tail",
                fix=f"write 1 to {layers - 2}; 2 to 4 do well",
            )

    def identity(self, digests: list[str], model: ModelFolder) -> dict[str, Any]:
        """Return what decides the outcome, time apart; `digests` are the data's contents."""
        return {
            "model": model.digest,
            "data": digests,
            "exits": sorted(self.exits),
            "rows": self.rows,
            "kind": self.kind,
            "tail": self.tail,
            "rank": self.rank,
            "adapt": self.adapt,
            "seed": self.seed,
            "disk": self.disk,
        }
