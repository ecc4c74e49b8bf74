"""The loaded layers of a model: as many as the depth in use needs, and no more."""

from __future__ import annotations

from helios_batch.engine.device import Resources
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.file import ExitFile
from helios_batch.models.exits.load import load_exit
from helios_batch.models.folder import ModelFolder
from helios_batch.models.weights import DecoderWeights, GreedyLoader


class Backbone:
    """Loads a model's first layers, deepens them and cuts them off again.

    `bytes_read` counts what the last change took from the model's files, of `bytes_stored` there.
    """

    def __init__(self, model: ModelFolder, resources: Resources) -> None:
        self._model, self._resources = model, resources
        self._weights: DecoderWeights | None = None
        self._own = 0  # so many of the loaded layers are as the model's files have them
        self.bytes_read = 0
        self.bytes_stored = 0

    def at(self, depth: int, exit_file: ExitFile | None) -> Decoder:
        """Return a decoder of the first `depth` layers and an exit; earlier ones are invalid.

        Raises:
            ModelError: weights can't be read.
        """
        config, resources = self._model.config, self._resources
        with Checkpoint(self._model.path) as checkpoint:
            names = self._model.architecture.tensor_names
            loader = GreedyLoader(config, names, checkpoint, resources.dtype, resources.device)
            if self._weights is None:
                self._weights = loader.load(depth)
            else:
                loader.truncate(self._weights, min(depth, self._own))
                loader.deepen(self._weights, depth)
            exit_weights = None
            self._own = depth
            if exit_file is not None:
                self._own = exit_file.first_adapted
                exit_weights = load_exit(exit_file, config, loader, self._weights)
            self.bytes_read, self.bytes_stored = checkpoint.bytes_read, checkpoint.total_bytes
        return Decoder(config, self._weights, exit_weights)
