"""State copy against the layers themselves, run on a state that stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helios_batch.models.checkpoint import Checkpoint
from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.file import open_exit
from helios_batch.models.exits.load import load_exit
from helios_batch.models.folder import open_model
from helios_batch.models.state_copy import Copied, skip_exit, skip_layers
from helios_batch.models.weights import GreedyLoader
from tests.support.exits import add_exit
from tests.support.tiny import CONFIGS, make_model

TOKENS = 16


class Kept:
    """An attention that keeps keys and values, and attends to nothing."""

    def __init__(self) -> None:
        self.found: list[Copied] = []

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Keep them."""
        self.found.append(Copied(layer, key.clone(), value.clone()))
        return torch.zeros_like(query)


def load(folder: Path, exit_name: str | None = None) -> Decoder:
    """Load all layers, and an exit of the model's."""
    model = open_model(str(folder))
    with Checkpoint(model.path) as checkpoint:
        names, config = model.architecture.tensor_names, model.config
        loader = GreedyLoader(config, names, checkpoint, torch.float32, torch.device("cpu"))
        weights = loader.load(config.num_layers)
        if exit_name is None:
            return Decoder(config, weights)
        exit_file = open_exit(folder / "exits" / exit_name, model)
        return Decoder(config, weights, load_exit(exit_file, config, loader, weights))


def check(copied: list[Copied], run: list[Copied]) -> None:
    assert [found.layer for found in copied] == [found.layer for found in run]
    for ours, theirs in zip(copied, run, strict=True):
        torch.testing.assert_close(ours.key, theirs.key, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.value, theirs.value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.inference_mode()
def test_skipped_layers_keep_what_run_ones_do(kind: str, tmp_path: Path) -> None:
    """For every architecture, of a state that is frozen layers keep the same as of one copied."""
    make_model(tmp_path, kind)
    decoder, positions = load(tmp_path), torch.arange(3, 3 + TOKENS)
    hidden = torch.randn(TOKENS, 192, generator=torch.Generator().manual_seed(1))
    frozen, kept = torch.ones(TOKENS, dtype=torch.bool), Kept()
    *_, after = decoder.run(hidden, positions, kept, range(1, 4), frozen)
    assert torch.equal(after, hidden)
    check(list(skip_layers(decoder, hidden, positions, range(1, 4))), kept.found)


@pytest.mark.parametrize(("kind", "tail"), [("layer:1", ()), ("bridge", (2, 3))])
@torch.inference_mode()
def test_skipped_exits_keep_what_run_ones_do(
    kind: str, tail: tuple[int, ...], tmp_path: Path
) -> None:
    """The state passes the exit's bridge, and is frozen behind it."""
    make_model(tmp_path, "llama3")
    add_exit(tmp_path, kind, 1, tail)
    decoder, positions = load(tmp_path, "exit-01.safetensors"), torch.arange(TOKENS)
    hidden = torch.randn(TOKENS, 192, generator=torch.Generator().manual_seed(1))
    frozen, kept = torch.ones(TOKENS, dtype=torch.bool), Kept()
    decoder.leave(hidden, positions, kept, frozen)
    assert kept.found[0].layer == 4
    check(list(skip_exit(decoder, hidden, positions)), kept.found)
