"""Policy `ee` token by token, on transformers' own Llama modules: what the engine must equal."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.support.exits import add_deltas, norm, take_over


class ExitSetup(NamedTuple):
    """An exit of a tiny model: the model's layers that it ends in, and its tensors, if any."""

    kind: str = "native"
    tail: tuple[int, ...] = ()
    tensors: Mapping[str, torch.Tensor] = {}
    temperature: float = 1.0


class Left(NamedTuple):
    """A token, the layer where it left, and how sure the exit was of the likeliest token."""

    token: int
    layer: int
    confidence: float


class _Layer:
    """A layer of transformers and what it has kept: keys and values [heads, tokens, dim]."""

    def __init__(self, module: Any, rotary: Any) -> None:
        self._module, self._rotary = module, rotary
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the next token's state [1, hidden_size] after the layer."""
        attention = self._module.self_attn
        position = len(self._keys)
        self.skip(hidden)
        query = self._heads(attention.q_proj, hidden)
        query = self._rotated(query, hidden, position)[0, :, 0]
        keys, values = torch.stack(self._keys, 1), torch.stack(self._values, 1)
        group = len(query) // len(keys)
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        weights = torch.einsum("hd,htd->ht", query, keys) * attention.scaling
        mixed = torch.einsum("ht,htd->hd", weights.softmax(-1), values)
        hidden = hidden + attention.o_proj(mixed.reshape(1, -1))
        after: torch.Tensor = self._module.mlp(self._module.post_attention_layernorm(hidden))
        return hidden + after

    def skip(self, hidden: torch.Tensor) -> None:
        """Keep the keys and values of a state [1, hidden_size] and do nothing else."""
        attention = self._module.self_attn
        key = self._heads(attention.k_proj, hidden)
        self._keys.append(self._rotated(key, hidden, len(self._keys))[0, :, 0])
        self._values.append(self._heads(attention.v_proj, hidden)[0, :, 0])

    def _heads(self, projection: Any, hidden: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = projection(self._module.input_layernorm(hidden))
        return heads.view(1, -1, 1, self._module.self_attn.head_dim)

    def _rotated(self, heads: torch.Tensor, hidden: torch.Tensor, position: int) -> torch.Tensor:
        cosines, sines = self._rotary(hidden[None], torch.tensor([[position]]))
        rotated: torch.Tensor = apply_rotary_pos_emb(heads, heads, cosines, sines)[0]
        return rotated


class _Rung:
    def __init__(self, reference: Any, depth: int, exit_: ExitSetup) -> None:
        self._reference, self._exit, self.depth = reference, exit_, depth
        tensors, rotary = exit_.tensors, reference.model.rotary_emb
        modules = [copy.deepcopy(reference.model.layers[index]) for index in exit_.tail]
        for index, module in zip(exit_.tail, modules, strict=True):
            if f"delta.{index}.qkv.up" in tensors:
                add_deltas(module, index, tensors)
        if "layers.0.qkv.weight" in tensors:
            modules.append(copy.deepcopy(reference.model.layers[-1]))
            take_over(modules[-1], tensors)
        self._layers = [_Layer(module, rotary) for module in modules]

    def leave(self, hidden: torch.Tensor) -> Left:
        """Run the exit on a state [1, hidden_size]."""
        tensors, reference = self._exit.tensors, self._reference
        hidden = self._cross(hidden)
        for layer in self._layers:
            hidden = layer.run(hidden)
        if "mlp.mlp_in.weight" in tensors:
            normed = norm(reference, hidden, tensors["mlp.mlp_norm.weight"])
            gate, up = (normed @ tensors["mlp.mlp_in.weight"].T).chunk(2, dim=-1)
            hidden = hidden + (silu(gate) * up) @ tensors["mlp.mlp_out.weight"].T
        head = tensors.get("head.weight", reference.lm_head.weight)
        weight = tensors.get("norm.weight", reference.model.norm.weight)
        logits = norm(reference, hidden, weight)[0] @ head.T
        sure = (logits / self._exit.temperature).softmax(-1).max()
        return Left(int(logits.argmax()), self.depth, float(sure))

    def skip(self, hidden: torch.Tensor) -> None:
        """Let the exit's layers keep what is copied."""
        for layer in self._layers:
            layer.skip(self._cross(hidden))

    def _cross(self, hidden: torch.Tensor) -> torch.Tensor:
        if "bridge.weight" not in self._exit.tensors:
            return hidden
        return hidden @ self._exit.tensors["bridge.weight"].T + self._exit.tensors["bridge.bias"]


@torch.inference_mode()
def generate(
    reference: Any,
    exits: Mapping[int, ExitSetup],
    ids: list[int],
    count: int,
    threshold: float,
) -> list[Left]:
    """Return `count` greedy tokens after a prompt, one at a time, each as far up as it must go."""
    inner = reference.model
    layers = [_Layer(module, inner.rotary_emb) for module in inner.layers]
    full = _Rung(reference, len(layers), ExitSetup())
    rungs = [*(_Rung(reference, depth, exits[depth]) for depth in sorted(exits)), full]

    def climb(token: int, stop: bool) -> Left:
        hidden, depth, found = inner.embed_tokens(torch.tensor([token])), 0, None
        for number, rung in enumerate(rungs):
            for layer in layers[depth : rung.depth]:
                hidden = layer.run(hidden)
            depth = rung.depth
            left = rung.leave(hidden)
            if found is None and (left.confidence >= threshold or rung is full):
                found = left
            if found is not None and stop:
                for layer in layers[depth:]:
                    layer.skip(hidden)
                for above in rungs[number + 1 :]:
                    above.skip(hidden)
                return found
        assert found is not None
        return found

    for token in ids[:-1]:
        climb(token, stop=False)
    result = [climb(ids[-1], stop=False)]
    while len(result) < count:
        result.append(climb(result[-1].token, stop=True))
    return result
