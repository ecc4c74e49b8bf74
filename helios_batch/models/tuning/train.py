"""Training an exit on cached hidden states, the model itself frozen.

The loss of a token is the cross entropy against the full model's most likely next tokens, plus the
distance of the exit's last hidden state from the full model's, both as unit vectors. Soft-max sums
run over the batch's own likely tokens and a random sample, not over the whole vocabulary. Weights
are averaged exponentially (Polyak), so that training can end at any step without a schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch
import torch.nn.functional as F

from helios_batch.models.decoder import Decoder
from helios_batch.models.exits.assemble import assemble
from helios_batch.models.exits.metadata import ExitMetadata
from helios_batch.models.tuning.attention import PaddedAttention
from helios_batch.models.tuning.states import StateBatch, StateCache
from helios_batch.models.weights import DecoderWeights, LayerWeights


@dataclass(frozen=True)
class TrainSettings:
    """How an exit is trained.

    `prompt_weight` is what a prompt's position counts, against 1 for one that the model wrote;
    `negatives` is the sample of the vocabulary that is added to a batch's own likely tokens.
    """

    batch_tokens: int = 4096
    learning_rate: float = 1e-3
    bridge_rate: float = 3e-4
    warmup_steps: int = 20
    average: float = 0.99
    prompt_weight: float = 0.25
    state_weight: float = 1.0
    negatives: int = 2048
    seed: int = 0


class TrainerState(TypedDict):
    """Tensors in training and their averages by name, the optimizer's state, steps and tokens."""

    live: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    steps: int
    tokens: int


class Trainer:
    """Trains the tensors of one exit in place.

    Args:
        decoder: the full model, for its embedding, norm and head.
        layers: the model's layers by index.
        metadata: what the exit consists of.
        tensors: the exit's tensors by name, float32; where training starts.
        cache: hidden states before the first layer that the exit changes, and at full depth.
        settings: how to train.
    """

    def __init__(
        self,
        decoder: Decoder,
        layers: Mapping[int, LayerWeights],
        metadata: ExitMetadata,
        tensors: Mapping[str, torch.Tensor],
        cache: StateCache,
        settings: TrainSettings,
    ) -> None:
        self._decoder, self._layers, self.metadata = decoder, layers, metadata
        self._cache, self._settings = cache, settings
        device = decoder.weights.embedding.device
        self._live = {
            name: torch.nn.Parameter(t.to(device, torch.float32, copy=True))
            for name, t in tensors.items()
        }
        self._average = {name: t.detach().clone() for name, t in self._live.items()}
        slow = [t for name, t in self._live.items() if not name.startswith("delta.")]
        fast = [t for name, t in self._live.items() if name.startswith("delta.")]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": slow, "lr": settings.bridge_rate, "rate": settings.bridge_rate},
                {"params": fast, "lr": settings.learning_rate, "rate": settings.learning_rate},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )
        self._first = metadata.depth - exit_decoder(decoder, tensors, metadata, layers).depth
        self.steps = 0
        self.tokens = 0

    def places(self, indices: Sequence[int]) -> int:
        """Return how many places, padding included, some texts take as one batch."""
        return len(indices) * max(len(self._cache.texts[i].tokens) for i in indices)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the averaged tensors so far."""
        return dict(self._average)

    def state(self) -> TrainerState:
        """Return all that `restore` needs to go on."""
        return {
            "live": {name: t.detach() for name, t in self._live.items()},
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
            "tokens": self.tokens,
        }

    def restore(self, state: TrainerState) -> None:
        """Go on from what `state` returned."""
        with torch.no_grad():
            for name, parameter in self._live.items():
                parameter.copy_(state["live"][name])
                self._average[name].copy_(state["average"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps, self.tokens = state["steps"], state["tokens"]

    def step(self, indices: Sequence[int]) -> float:
        """Learn from some texts as one batch; return the loss."""
        batch = self._cache.read(indices, [self._first, self.metadata.num_layers])
        device = self._decoder.weights.embedding.device
        kind = torch.bfloat16 if self._decoder.weights.embedding.dtype == torch.bfloat16 else None
        with torch.autocast(device.type, kind, enabled=kind is not None):
            loss = self._loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._live.values(), 1.0)
        warm = min(1.0, (self.steps + 1) / self._settings.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * warm
        self._optimizer.step()
        self.steps += 1
        self.tokens += int(batch.texts.within.sum())
        keep = min(self._settings.average, self.steps / (self.steps + 10))
        with torch.no_grad():
            for name, parameter in self._live.items():
                self._average[name].lerp_(parameter, 1 - keep)
        return float(loss.detach())

    def _loss(self, batch: StateBatch) -> torch.Tensor:
        settings, texts = self._settings, batch.texts
        chosen = texts.within.flatten()
        weight = torch.where(texts.decides, 1.0, settings.prompt_weight).flatten()[chosen]
        student = exit_decoder(self._decoder, self._live, self.metadata, self._layers)
        hidden = batch.hidden[self._first].flatten(0, 1).to(student.weights.embedding)
        attention = PaddedAttention(student.config, student.kinds, *texts.tokens.shape)
        left = student.resume(hidden, texts.positions.to(hidden.device), attention)[chosen]
        kinds, places = self._vocabulary(batch.top_tokens.flatten(0, 1)[chosen])
        likely = batch.top_logprobs.flatten(0, 1)[chosen].exp().to(hidden.device)
        weight, kinds = weight.to(hidden.device), kinds.to(hidden.device)
        logits = F.linear(student.final_norm(left), student.head[kinds]).float()
        chances = logits.log_softmax(dim=-1).gather(1, places.to(hidden.device))
        loss = -(likely * chances).sum(dim=-1)
        if settings.state_weight:
            target = batch.hidden[self.metadata.num_layers].flatten(0, 1)[chosen]
            target = F.normalize(target.to(hidden.device).float(), dim=-1)
            distance = (F.normalize(left.float(), dim=-1) - target).square().sum(dim=-1)
            loss = loss + settings.state_weight * distance
        return (loss * weight).sum() / weight.sum()

    def _vocabulary(self, top: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens that the soft-max runs over, and where `top` [N, TOP] are in them."""
        generator = torch.Generator().manual_seed(self._settings.seed * 1_000_003 + self.steps)
        size = self._decoder.config.vocab_size
        sample = torch.randint(size, (self._settings.negatives,), generator=generator)
        kinds = torch.unique(torch.cat([top.flatten(), sample]))
        return kinds, torch.searchsorted(kinds, top)


def exit_decoder(
    decoder: Decoder,
    tensors: Mapping[str, torch.Tensor],
    metadata: ExitMetadata,
    layers: Mapping[int, LayerWeights],
) -> Decoder:
    """Return a decoder that has the exit made of `tensors`, and before it only the layers of the
    model from the first one that the exit changes on."""
    weights = decoder.weights
    exit_, adapted = assemble(tensors, metadata, decoder.config, layers)
    first = min(adapted, default=metadata.depth)
    own = DecoderWeights(
        weights.embedding,
        weights.position_embedding,
        weights.final_norm,
        weights.head,
        [adapted.get(index, layers[index]) for index in range(first, metadata.depth)],
    )
    config = replace(decoder.config, layers=decoder.config.layers[first:])
    return Decoder(config, own, exit_)
