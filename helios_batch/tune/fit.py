"""Making one exit: start, training with an eye on other texts, temperature, measurement."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.flop_counter import FlopCounterMode

from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.file import ExitFile
from helios_batch.models.exits.load import read_exit
from helios_batch.models.exits.metadata import ExitMetadata, Measured, is_norm
from helios_batch.models.tuning.measure import agreement, fit_temperature, judge, summarize
from helios_batch.models.tuning.start import starting_tensors
from helios_batch.models.tuning.states import StateCache
from helios_batch.models.tuning.train import Trainer, TrainSettings, exit_decoder
from helios_batch.tune.result import CurvePoint
from helios_batch.tune.training_state import load_training, save_training

FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""Shares of the data that the closed form is fitted on, for the curve by data."""
_LOOK_SECONDS = 20.0
_FLAT_LOOKS = 4
_FLAT_GAIN = 0.002


class Watcher(Protocol):
    """Who watches a tuning."""

    def phase(self, name: str, total: float) -> None:
        """A phase of `total` units begins."""

    def advance(self, done: float, status: str) -> None:
        """`done` units of the phase are done."""


@dataclass(frozen=True)
class Splits:
    """Texts of a cache by index: to learn from, to watch training and fit temperatures by, and to
    measure by."""

    learn: Sequence[int]
    watch: Sequence[int]
    held_out: Sequence[int]


@dataclass(frozen=True)
class MadeExit:
    """A finished exit; its curve, why training ended, and how fast it went in FLOP/s."""

    metadata: ExitMetadata
    tensors: dict[str, torch.Tensor]
    curve: tuple[CurvePoint, ...]
    ended: str
    flops_per_second: float


class ExitMaker:
    """Makes exits of one model from one cache.

    Args:
        decoder: the model at full depth.
        cache: its hidden states.
        splits: which texts are for what.
        settings: how to train.
        rank: of a bridge's deltas.
        adapt: loaded layers before the exit that get deltas too.
        known: exits that the model has already, by depth. One of the same shape that does better
            on the watched texts than the closed form is where training starts.
        watcher: told of progress.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: StateCache,
        splits: Splits,
        settings: TrainSettings,
        rank: int,
        adapt: int,
        known: Mapping[int, ExitFile],
        watcher: Watcher,
    ) -> None:
        self._decoder, self._cache, self._splits = decoder, cache, splits
        self._settings, self._rank, self._watcher = settings, rank, watcher
        self._known, self._adapt = known, adapt
        self._layers = dict(enumerate(decoder.weights.layers))

    def make(self, metadata: ExitMetadata, seconds: float, checkpoint: Path) -> MadeExit:
        """Make the exit that `metadata` describes.

        Args:
            metadata: everything but temperature and measurements.
            seconds: time to train; training ends sooner when the curve is flat.
            checkpoint: where training is saved now and then, and taken up again.
        """
        self._watcher.phase(f"exit {metadata.depth}", seconds)
        learn, weights = self._splits.learn, self._decoder.weights
        tensors: dict[str, torch.Tensor] = {}
        curve = []
        # deltas begin without effect: these points are of the closed form
        for share in FRACTIONS if metadata.kind != "norm" else FRACTIONS[-1:]:
            part = learn[: max(1, int(len(learn) * share))]
            tensors = starting_tensors(
                metadata,
                weights,
                self._cache,
                part,
                self._rank,
                self._adapt,
                self._settings.seed,
            )
            tokens = sum(len(self._cache.texts[i].tokens) for i in part)
            curve.append(CurvePoint(tokens, 0.0, self._agreement(metadata, tensors)))
        metadata, tensors = self._start(metadata, tensors, curve[-1].agreement)
        trainer = Trainer(
            self._decoder, self._layers, metadata, tensors, self._cache, self._settings
        )
        curve, rate = self._train(trainer, curve, seconds, checkpoint)
        flat = _is_flat(curve)
        best = self._served(trainer.tensors() if trainer.steps else tensors)
        return MadeExit(
            metadata=self._measured(metadata, best),
            tensors=best,
            curve=tuple(curve),
            ended="the curve is flat" if flat else "the time was up",
            flops_per_second=rate,
        )

    def _start(
        self, metadata: ExitMetadata, closed: dict[str, torch.Tensor], agreement: float
    ) -> tuple[ExitMetadata, dict[str, torch.Tensor]]:
        """Return the better of the closed form and the model's known exit at this depth."""
        exit_file = self._known.get(metadata.depth)
        if exit_file is None or exit_file.metadata.tail != metadata.tail:
            return metadata, closed
        known = read_exit(exit_file)
        if any(name not in closed or closed[name].shape != t.shape for name, t in known.items()):
            return metadata, closed
        start = closed | known
        if self._agreement(metadata, start) <= agreement:
            return metadata, closed
        return replace(metadata, training=metadata.training | {"start": exit_file.digest}), start

    def _train(
        self, trainer: Trainer, curve: list[CurvePoint], seconds: float, checkpoint: Path
    ) -> tuple[list[CurvePoint], float]:
        curve = load_training(checkpoint, trainer) or curve
        resumed = spent = looked = curve[-1].seconds
        flops, counted, loss = 0.0, 0.0, 0.0
        while spent < seconds and not _is_flat(curve):
            group = self._group(trainer.steps)
            began = time.perf_counter()
            if not flops:
                with FlopCounterMode(display=False) as counter:
                    loss = trainer.step(group)
                flops = counter.get_total_flops() / trainer.places(group)
            else:
                loss = trainer.step(group)
                counted += trainer.places(group)
            spent += time.perf_counter() - began
            if spent - looked >= _LOOK_SECONDS or spent >= seconds:
                looked = spent
                reached = self._agreement_of(trainer)
                curve.append(CurvePoint(trainer.tokens, spent, reached, loss))
                save_training(checkpoint, trainer, curve)
            status = f"loss {loss:.3f} · agreement {curve[-1].agreement:.1%}"
            self._watcher.advance(spent, status)
        trained = spent - resumed
        return curve, flops * counted / trained if trained else 0.0

    def _group(self, step: int) -> list[int]:
        """Return the texts of a step: each epoch is all of them, in an order of its own."""
        groups = self._cache.batches(self._splits.learn, self._settings.batch_tokens)
        epoch, place = divmod(step, len(groups))
        random.Random(f"{self._settings.seed}/{epoch}").shuffle(groups)
        return groups[place]

    def _agreement_of(self, trainer: Trainer) -> float:
        return self._agreement(trainer.metadata, self._served(trainer.tensors()))

    def _agreement(self, metadata: ExitMetadata, tensors: dict[str, torch.Tensor]) -> float:
        exit_ = exit_decoder(self._decoder, self._served(tensors), metadata, self._layers)
        return agreement(exit_, metadata.depth, self._cache, self._splits.watch)

    def _served(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors in the types that they are stored and served in."""
        kind = self._decoder.weights.embedding.dtype
        return {name: t if is_norm(name) else t.to(kind) for name, t in tensors.items()}

    def _measured(self, metadata: ExitMetadata, tensors: dict[str, torch.Tensor]) -> ExitMetadata:
        """Fit the temperature on the watched texts, and measure on those held out."""
        exit_ = exit_decoder(self._decoder, tensors, metadata, self._layers)
        watched = judge(exit_, metadata.depth, self._cache, self._splits.watch)
        temperature = fit_temperature(watched)
        held_out = judge(exit_, metadata.depth, self._cache, self._splits.held_out)
        measured: dict[str, Measured] = {"held_out": summarize(held_out, temperature)}
        return replace(metadata, temperature=temperature, measured=measured)


def _is_flat(curve: Sequence[CurvePoint]) -> bool:
    """Whether the last looks gained next to nothing over the best before them."""
    trained = [point.agreement for point in curve if point.loss is not None]
    if len(trained) <= _FLAT_LOOKS:
        return False
    return max(trained[-_FLAT_LOOKS:]) < max(trained[:-_FLAT_LOOKS]) + _FLAT_GAIN
