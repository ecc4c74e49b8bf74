"""The loaded layers of a model: as many as the depth in use needs, and no more."""

from __future__ import annotations

from dataclasses import dataclass, replace

from helios_batch.engine.device import Resources
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.assemble import ExitWeights
from helios_batch.models.exits.file import ExitFile
from helios_batch.models.exits.load import load_exit
from helios_batch.models.folder import ModelFolder
from helios_batch.models.weights import DecoderWeights, GreedyLoader


@dataclass(frozen=True)
class Reading:
    """Weights read for a depth; `own` counts the first layers that no exit has changed.

    `bytes_read` were taken from the model's files, of `bytes_stored` there.
    """

    weights: DecoderWeights
    exit: ExitWeights | None
    own: int
    bytes_read: int
    bytes_stored: int


class Backbone:
    """Loads a model's first layers, deepens them and cuts them off again."""

    def __init__(self, model: ModelFolder, resources: Resources) -> None:
        self._model, self._resources = model, resources
        self._weights: DecoderWeights | None = None
        self._own = 0

    def kept(self, depth: int, exit_file: ExitFile | None) -> int:
        """Return how many of the layers loaded now serve at another depth as they are."""
        changed = depth if exit_file is None else exit_file.first_adapted
        return min(self._own, changed)

    def drop(self, depth: int, exit_file: ExitFile | None) -> None:
        """Let go of what another depth has no use for."""
        if self._weights is not None:
            GreedyLoader.truncate(self._weights, self.kept(depth, exit_file))

    def read(self, depth: int, exit_file: ExitFile | None) -> Reading:
        """Read what lacks for a depth; what is loaded stays in use until `install`.

        Raises:
            ModelError: weights can't be read.
        """
        config, resources = self._model.config, self._resources
        with Checkpoint(self._model.path) as checkpoint:
            names = self._model.architecture.tensor_names
            loader = GreedyLoader(config, names, checkpoint, resources.dtype, resources.device)
            if self._weights is None:
                weights = loader.load(depth)
            else:
                # layers that this or the last exit changes are read anew
                shared = self._weights.layers[: self.kept(depth, exit_file)]
                weights = replace(self._weights, layers=list(shared))
                loader.deepen(weights, depth)
            own, exit_weights = depth, None
            if exit_file is not None:
                own = exit_file.first_adapted
                exit_weights = load_exit(exit_file, config, loader, weights)
            read, stored = checkpoint.bytes_read, checkpoint.total_bytes
        return Reading(weights, exit_weights, own, read, stored)

    def install(self, reading: Reading) -> Decoder:
        """Use what was read; return its decoder. Earlier ones are invalid."""
        self._weights, self._own = reading.weights, reading.own
        return Decoder(self._model.config, reading.weights, reading.exit, reading.own)
