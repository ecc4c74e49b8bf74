"""Training from scratch, seeded: the loop, its schedule and its log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from helios_batch.models.nano import objective
from helios_batch.models.nano.network import (
    Network,
    Shape,
    new_network,
    output_logits,
    rotations,
    run_layer,
)

Tokens = NDArray[np.uint16]


@dataclass(frozen=True)
class Settings:
    """How to train; `compiled` needs a C++ compiler and changes speed and rounding only."""

    steps: int
    batch: int = 8
    length: int = 256
    seed: int = 0
    peak_rate: float = 3e-3
    warm_up: int = 60
    dtype: torch.dtype = torch.bfloat16
    compiled: bool = True
    log_every: int = 50


class Trainer:
    """Trains one network on one stream of tokens."""

    def __init__(self, shape: Shape, train: Tokens, held_out: Tokens, settings: Settings) -> None:
        self.network = new_network(shape, settings.seed)
        self._shape, self._settings = shape, settings
        self._train, self._held_out = train, held_out
        self._rotations = rotations(shape, settings.length)

        def prepare(function: Callable[..., Any], *first: Any) -> Callable[..., Any]:
            bound = partial(function, *first)
            return torch.compile(bound, dynamic=False) if settings.compiled else bound

        dtype = settings.dtype
        self._layer = prepare(run_layer, shape, dtype)
        self._last_loss = prepare(objective.last_loss, dtype)
        self._exit_loss = prepare(objective.exit_loss, dtype)
        self._teacher = prepare(objective.teacher_probabilities, dtype)
        self._optimizers = _optimizers(self.network)

    def run(self, report: Callable[[str], None]) -> Network:
        """Train for all steps; report tokens/s and held-out loss by depth as it goes."""
        started = last = time.perf_counter()
        settings = self._settings
        losses: list[float] = []
        for step in range(settings.steps):
            losses.append(self.step(step))
            if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
                now = time.perf_counter()
                speed = settings.batch * settings.length * len(losses) / (now - last)
                report(
                    f"step {step + 1}/{settings.steps}  {now - started:.0f} s  "
                    f"{speed:.0f} tokens/s  loss {sum(losses) / len(losses):.3f}  "
                    f"held-out by depth {self.held_out_losses()}"
                )
                losses, last = [], time.perf_counter()
        return self.network

    def step(self, step: int) -> float:
        """Take one step; return the weighted loss."""
        network, settings = self.network, self._settings
        rate = learning_rate(step, settings)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_factor"]
        inputs, targets = self._batch(step)
        weights = objective.exit_weights(
            objective.exits_to_train(step, self._shape.num_layers), self._shape.num_layers
        )
        taking_part = objective.layers_to_run(step, self._shape.num_layers, settings.seed)
        hidden = F.embedding(inputs, network.embedding)
        exits = {}
        for index, layer in enumerate(network.layers):
            if taking_part[index]:
                hidden = self._layer(hidden, *self._rotations, layer.tensors())
            if index + 1 in weights:
                exits[index + 1] = hidden.flatten(0, 1)
        final = exits.pop(self._shape.num_layers)
        head = (network.final_norm, network.embedding)
        loss = weights[self._shape.num_layers] * self._last_loss(final, *head, targets)
        offset = step // objective.ROTATION % objective.STRIDE
        picked = slice(offset, None, objective.STRIDE)
        teacher = self._teacher(final[picked].detach(), *head)
        for depth, hidden in exits.items():
            part = self._exit_loss(hidden[picked], teacher, *head, targets[picked])
            loss = loss + weights[depth] * part
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            [tensor for tensor in network.tensors() if tensor.grad is not None], 1.0
        )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    @torch.no_grad()
    def held_out_losses(self) -> str:
        """Return the loss at each third depth over a fixed piece of the held-out text."""
        length, network = self._settings.length, self.network
        rows = min(self._settings.batch, (len(self._held_out) - 1) // length)
        piece = torch.from_numpy(self._held_out[: rows * length + 1].astype(np.int64))
        hidden = F.embedding(piece[:-1].view(rows, length), network.embedding)
        found = []
        for index, layer in enumerate(network.layers):
            hidden = run_layer(
                self._shape, self._settings.dtype, hidden, *self._rotations, layer.tensors()
            )
            if (index + 1) % 3 == 0:
                logits = output_logits(
                    self._settings.dtype, hidden, network.final_norm, network.embedding
                )
                loss = F.cross_entropy(logits.flatten(0, 1), piece[1:])
                found.append(f"{index + 1}: {loss:.3f}")
        return "  ".join(found)

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs [B, T] and targets [B * T]: random pieces, drawn by seed and step."""
        length = self._settings.length
        draw = np.random.default_rng([self._settings.seed, step])
        starts = draw.integers(0, len(self._train) - length, self._settings.batch)
        rows = np.stack([self._train[start : start + length + 1] for start in starts])
        tokens = torch.from_numpy(rows.astype(np.int64))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)


def learning_rate(step: int, settings: Settings) -> float:
    """Return the rate of a step: linear warm-up, then a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / settings.warm_up)
    done = step / max(1, settings.steps)
    return settings.peak_rate * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


def _optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Return AdamW for embedding and norms, and Muon for the matrices of the layers.

    Muon's updates are scaled to AdamW's, and take twice its rate.
    """
    inner = [tensor for layer in network.layers for tensor in layer.tensors()]
    outer = [network.embedding, network.final_norm, *(t for t in inner if t.dim() == 1)]
    adam = torch.optim.AdamW(
        [{"params": outer, "rate_factor": 1.0}], betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    muon = torch.optim.Muon(
        [{"params": [t for t in inner if t.dim() == 2], "rate_factor": 2.0}],
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adam, muon]
