"""What the repository knows of a model (no torch)."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from helios_batch.models.packs import PACKS
from helios_batch.spec_section import Real, Section

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[Real, Field(gt=0.0, allow_inf_nan=False)]
_FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class Quality(Section):
    """How good what a model says was found, by a metric such as `exact` or `token`.

    Against right `answers` the values of one metric compare between models. Against `full depth`
    they say how well a shallower depth follows the same model, and nothing about other models.
    """

    metric: Text
    against: Literal["answers", "full depth"]
    value: Annotated[Real, Field(ge=0.0, le=1.0)]


class Measurement(Section):
    """What was measured of a model, all of it in one go.

    Args:
        task: what ran: a job's name, `generate`, `label`, or a few words.
        hardware: as `hardware_name` tells it.
        dtype: of weights, activations and KV cache.
        depth: layers loaded.
        tokens_per_second: generated tokens.
        rows_per_second: finished rows.
        memory_bytes: weights and KV cache, with `batch` sequences at once.
        quality: see `Quality`.
        measured_by: the command that measures it.
        date: when it did.
    """

    task: Text
    hardware: Text
    dtype: Literal["float32", "bfloat16"]
    depth: Count
    tokens_per_second: Rate | None = None
    rows_per_second: Rate | None = None
    memory_bytes: Count | None = None
    batch: Count | None = None
    quality: Quality | None = None
    measured_by: Text
    date: datetime.date

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What a newer measurement has in common with the one it replaces."""
        return (self.task, self.hardware, self.dtype, self.depth)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        figures = (self.tokens_per_second, self.rows_per_second, self.memory_bytes, self.quality)
        if all(figure is None for figure in figures):
            raise ValueError(
                "nothing was measured: give tokens_per_second, rows_per_second, memory_bytes or "
                "quality"
            )
        if (self.memory_bytes is None) != (self.batch is None):
            raise ValueError("memory_bytes and batch, the sequences it holds, go together")
        return self


class Entry(Section):
    """A model: its shape as far as it is known, and its measurements.

    Args:
        name: a pack, a hub id or a local folder, as a job names it.
        family: of its architecture, such as `llama`.
        tokenizer: a group of models with the same token ids, whose token streams and perplexities
            compare.
        num_layers: at full depth.
        exits: depths that the model may be left at, or `every_layer`.
    """

    name: Text
    family: Text | None = None
    tokenizer: Text | None = None
    num_layers: Count | None = None
    exits: tuple[int, ...] | Literal["every_layer"] | None = None
    measured: Annotated[tuple[Measurement, ...], _FromList] = ()

    @field_validator("exits", mode="before")
    @classmethod
    def _depths_or_every_layer(cls, value: object) -> object:
        if value is None or value == "every_layer":
            return value
        depths = value if isinstance(value, list | tuple) else [0]
        counts = all(type(depth) is int and depth >= 1 for depth in depths)
        if not counts or list(depths) != sorted(set(depths)):
            raise ValueError("write a list of ascending depths, or every_layer")
        return tuple(depths)

    @model_validator(mode="after")
    def _depths_are_inside(self) -> Self:
        layers = self.num_layers
        if layers is not None:
            exits = () if isinstance(self.exits, str) else self.exits or ()
            if any(depth >= layers for depth in exits):
                raise ValueError(f"an exit lies before the last of {layers} layers")
            for found in self.measured:
                if found.depth > layers:
                    raise ValueError(f"measured at depth {found.depth} of {layers} layers")
        return self

    @model_validator(mode="after")
    def _measured_once(self) -> Self:
        keys = [found.key for found in self.measured]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(
                    f"measured twice: {', '.join(map(str, key))}; task, hardware, dtype and depth "
                    "together name one measurement"
                )
        return self

    @property
    def fastest(self) -> Measurement | None:
        """The measurement of the most tokens per second, wherever it was made."""
        timed = [found for found in self.measured if found.tokens_per_second]
        return max(timed, key=lambda found: found.tokens_per_second or 0.0, default=None)

    def updated(self, by: Entry) -> Entry:
        """Return this entry with what another one of the same model knows.

        The other's shape counts where both state it. Of two measurements of one key the later
        stays, and the other's where the day is the same. Where the number of layers differs, the
        name has come to stand for another model, and nothing of this entry stays.

        Raises:
            ValueError: the other measured deeper than this model is, or this one's exits or
                measurements don't go with the other's shape.
        """
        if None not in (self.num_layers, by.num_layers) and self.num_layers != by.num_layers:
            return by
        measured = {found.key: found for found in self.measured}
        for found in by.measured:
            if found.key not in measured or measured[found.key].date <= found.date:
                measured[found.key] = found
        return Entry(
            name=by.name,
            family=by.family or self.family,
            tokenizer=by.tokenizer or self.tokenizer,
            num_layers=by.num_layers or self.num_layers,
            exits=self.exits if by.exits is None else by.exits,
            measured=tuple(measured.values()),
        )


@dataclass(frozen=True)
class Repository:
    """Entries, each name once."""

    entries: tuple[Entry, ...]

    def find(self, name: str) -> Entry | None:
        """Return the entry of what a job calls `name`, or None if there is none."""
        wanted = canonical(name)
        return next((entry for entry in self.entries if canonical(entry.name) == wanted), None)

    def updated(self, by: Entry) -> Repository:
        """Return the repository with what `by` knows; see `Entry.updated` for its errors."""
        entries = {canonical(entry.name): entry for entry in self.entries}
        name = canonical(by.name)
        entries[name] = entries[name].updated(by) if name in entries else by
        return Repository(tuple(entries.values()))


def canonical(name: str) -> str:
    """Return the name that a model has in the repository: a local folder's is its whole path."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if name not in PACKS and folder.is_dir() else name
