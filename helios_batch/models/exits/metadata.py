"""What an exit file says of itself: whose exit it is, how made, how good (no torch)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

FORMAT = 1
KEY = "helios_exit"
"""The entry of the safetensors header's `__metadata__` that holds the metadata as JSON."""


@dataclass(frozen=True, slots=True)
class ExitShape:
    """What an exit adds to the loaded layers.

    `layers` run after them, `tail_layers` of these are the model's own; `elements` are those of the
    exit's own tensors that stay in memory.
    """

    layers: int = 0
    tail_layers: int = 0
    elements: int = 0


NO_EXIT = ExitShape()


@dataclass(frozen=True, slots=True)
class Measured:
    """How an exit did on held-out tokens, against the same model at full depth.

    `agreement` is the share of tokens at which both say the same; `coverage` and `precision` are,
    by confidence threshold, the share of tokens above it and the agreement among those. `ece` is
    the expected calibration error over 15 bins of equal width (Guo et al., arXiv 1706.04599).
    """

    tokens: int
    agreement: float
    ece: float
    coverage: dict[str, float] = field(default_factory=dict)
    precision: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExitMetadata:
    """An exit of a model after `depth` of its layers.

    Args:
        kind: `norm`, `bridge`, `mlp` or `layer:N`.
        backbone: content hash of the model that the exit belongs to, `ModelFolder.digest`.
        model: what that model was called, for people.
        num_layers: layers of the full model.
        depth: layers loaded; the exit continues from the hidden states after them.
        normed: whether a norm, the exit's or the model's, stands before the head; EE-LLM has exits
            without.
        tail: the model's own layers that run after the bridge, by index.
        own_layers: decoder layers that the exit brings along.
        temperature: divides the exit's logits, so that confidence means what it says.
        choice_temperature: the same for the scores of a label task's choices.
        training: fingerprint and size of the data, seed, and what else tells how it was made.
        measured: by name of what it was measured on, such as `held_out`.
    """

    kind: str
    backbone: str
    model: str
    num_layers: int
    depth: int
    normed: bool = True
    tail: tuple[int, ...] = ()
    own_layers: int = 0
    temperature: float = 1.0
    choice_temperature: float = 1.0
    training: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)

    @property
    def layers_run(self) -> int:
        """Decoder layers that a token passes at this exit, those of the exit included."""
        return self.depth + len(self.tail) + self.own_layers

    def to_json(self) -> str:
        """Return the metadata as the JSON text of an exit file's header."""
        return json.dumps(asdict(self) | {"format": FORMAT}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is no exit's metadata, or of another format.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != FORMAT:
                raise ValueError("written by another version")
            data["tail"] = tuple(int(index) for index in data["tail"])
            data["measured"] = {k: Measured(**v) for k, v in data["measured"].items()}
            found = cls(**data)
            found._check()
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"no metadata of an exit: {exc!r}") from None
        return found

    def _check(self) -> None:
        inside = all(self.depth <= index < self.num_layers for index in self.tail)
        if not (1 <= self.depth < self.num_layers and inside and self.own_layers >= 0):
            raise ValueError(f"depth {self.depth} of {self.num_layers}, tail {self.tail}")
        if not (self.temperature > 0 and self.choice_temperature > 0):
            raise ValueError(f"temperatures {self.temperature}, {self.choice_temperature}")


def is_norm(tensor: str) -> bool:
    """Whether an exit's tensor belongs to a norm, and so is kept in float32."""
    return tensor.split(".")[-2].endswith("norm")
