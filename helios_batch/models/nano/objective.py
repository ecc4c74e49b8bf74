"""LayerSkip's objective (arXiv 2404.16710, section 4.1), with self-distillation of the exits.

Layer dropout grows with depth; every step computes the last layer's loss and, in rotation, those
of some exits, weighted by depth. All exits share the final norm and the output head. Two changes
make it cheap on a CPU: a layer is dropped for the whole batch, which saves its cost, and an exit's
loss is taken at a quarter of the positions. And one makes exits agree with the last layer: half of
an exit's target is the true token, half the last layer's own distribution.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F

from helios_batch.models.nano.network import output_logits

LARGEST_DROPOUT = 0.2  # of the last layer
ROTATION = 3  # each exit's loss is computed in one step of so many
STRIDE = 4  # at one position of so many
_DISTILLED = 0.5


def dropout_rate(layer: int, num_layers: int) -> float:
    """Return the probability of leaving `layer` (from 0) out: exponential in depth."""
    return LARGEST_DROPOUT * (math.exp(layer * math.log(2) / (num_layers - 1)) - 1)


def layers_to_run(step: int, num_layers: int, seed: int) -> list[bool]:
    """Tell for each layer whether it takes part in this step."""
    draw = random.Random(f"{seed}:{step}")
    return [draw.random() >= dropout_rate(layer, num_layers) for layer in range(num_layers)]


def exits_to_train(step: int, num_layers: int) -> list[int]:
    """Return the depths, the last excepted, whose loss this step computes."""
    return [depth for depth in range(1, num_layers) if depth % ROTATION == step % ROTATION]


def exit_weights(depths: list[int], num_layers: int) -> dict[int, float]:
    """Return the weights of the losses at `depths` and the last; they sum to one.

    Each weighs as its depth. The paper's weights grow with the square of the depth; these give
    the middle layers more, which is where these models are to exit.
    """
    raw = {depth: float(depth) for depth in (*depths, num_layers)}
    total = sum(raw.values())
    return {depth: weight / total for depth, weight in raw.items()}


def last_loss(
    dtype: torch.dtype,
    hidden: torch.Tensor,
    final_norm: torch.Tensor,
    embedding: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Return the mean cross-entropy of hidden [N, hidden_size] against targets [N]."""
    return F.cross_entropy(output_logits(dtype, hidden, final_norm, embedding), targets)


def exit_loss(
    dtype: torch.dtype,
    hidden: torch.Tensor,
    teacher: torch.Tensor,
    final_norm: torch.Tensor,
    embedding: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Return an exit's loss against the true tokens [N] and the teacher's probabilities [N, V]."""
    logs = F.log_softmax(output_logits(dtype, hidden, final_norm, embedding), dim=-1)
    true = -logs.gather(1, targets[:, None]).mean()
    soft = -(teacher * logs).sum(-1).mean()
    return (1 - _DISTILLED) * true + _DISTILLED * soft


@torch.no_grad()
def teacher_probabilities(
    dtype: torch.dtype, hidden: torch.Tensor, final_norm: torch.Tensor, embedding: torch.Tensor
) -> torch.Tensor:
    """Return the last layer's distribution [N, V]."""
    return output_logits(dtype, hidden, final_norm, embedding).softmax(-1)
