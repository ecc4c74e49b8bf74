"""The model at full depth, and how fast this machine multiplies."""

from __future__ import annotations

import time

import torch

from helios_batch.engine.device import Resources
from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.decoder import Decoder
from helios_batch.models.folder import ModelFolder
from helios_batch.models.weights import GreedyLoader


def load_decoder(model: ModelFolder, resources: Resources) -> Decoder:
    """Load a model at full depth."""
    torch.set_num_threads(resources.threads)
    with Checkpoint(model.path) as checkpoint:
        names = model.architecture.tensor_names
        loader = GreedyLoader(model.config, names, checkpoint, resources.dtype, resources.device)
        return Decoder(model.config, loader.load(model.config.num_layers))


def matrix_rate(resources: Resources) -> float:
    """Return the FLOP/s of a large matrix product in the type that training uses."""
    a, b = (
        torch.randn(shape, device=resources.device).to(resources.dtype)
        for shape in ((4096, 2048), (2048, 2048))
    )
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        # the transfer waits for the product on devices that run ahead
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - began)
    return 2 * 4096 * 2048 * 2048 / best
