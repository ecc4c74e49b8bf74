"""What a job measured of its candidates, for the shortlists of later jobs on this machine."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from helios_batch.engine.contender import Contender
from helios_batch.errors import ModelError
from helios_batch.helios.history import Depth, ModelHistory
from helios_batch.models.repository.entry import Entry, Measurement
from helios_batch.models.repository.record import record


def remember(
    contender: Contender, history: ModelHistory, task: str, hardware: str, dtype: str
) -> None:
    """Record how fast a candidate served rows at each depth, and the memory that this takes.

    Done without where the repository can't be written.

    Args:
        contender: the candidate.
        history: its entry in the table.
        task: the job's name.
        hardware: as `hardware_name` tells it.
        dtype: `float32` or `bfloat16`.
    """

    def measured(depth: Depth) -> Measurement:
        tokens = depth.batch * contender.sequence_tokens
        return Measurement(
            task=task,
            hardware=hardware,
            dtype="float32" if dtype == "float32" else "bfloat16",
            depth=depth.layers,
            tokens_per_second=depth.served.tokens / depth.served.seconds,
            memory_bytes=depth.weights + tokens * depth.kv_per_token,
            batch=depth.batch,
            measured_by="helios-batch run, policy helios",
            date=datetime.now(UTC).date(),
        )

    served = [depth for depth in history.depths if depth.served.tokens and depth.batch]
    if served:
        layers = contender.model.config.num_layers
        entry = Entry(
            name=contender.model.name, num_layers=layers, measured=tuple(map(measured, served))
        )
        with suppress(ModelError, ValueError):
            record(entry)
