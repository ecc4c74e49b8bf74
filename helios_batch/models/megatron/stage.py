"""One pipeline stage: its tensor ranks' parts put together, named as Llama's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from helios_batch.errors import ModelError
from helios_batch.models.megatron.arguments import MegatronArgs
from helios_batch.models.megatron.pickled import load_pickled

_TYPES = (torch.float32, torch.float16, torch.bfloat16)

Tensors = dict[str, torch.Tensor]


class Stage:
    """The tensors of a pipeline stage.

    Raises:
        ModelError: a file can't be read, or the files hold other tensors than the arguments say.
    """

    def __init__(self, files: Sequence[Path], args: MegatronArgs) -> None:
        self._files = files
        self._args = args
        self._ranks = [self._tensors(file) for file in files]
        self._left = set(self._ranks[0])

    def rows(self, name: str, rows: int | None = None) -> torch.Tensor:
        """Return a matrix that is split along its rows, or a vocabulary's if `rows` is None."""
        whole = torch.cat(self._take(name))
        return self._shaped(name, whole, rows or len(whole), self._args.hidden_size)

    def norm(self, name: str) -> torch.Tensor:
        """Return the weight of a norm; every rank holds it."""
        return self._shaped(name, self._take(name)[0].clone(), self._args.hidden_size)

    def mlp(self, prefix: str) -> Tensors:
        """Return a gated MLP. Each rank holds its part of the gate, then its part of up."""
        inner = self._args.intermediate_size
        name = f"{prefix}.dense_h_to_4h.weight"
        halves = [part.chunk(2) for part in self._take(name)]
        gate_up = [torch.cat([half[i] for half in halves if len(half) == 2]) for i in range(2)]
        gate, up = (self._shaped(name, x, inner, self._args.hidden_size) for x in gate_up)
        down = self._columns(f"{prefix}.dense_4h_to_h.weight", inner)
        return {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": down}

    def layer(self, prefix: str, mlp: str = "mlp") -> Tensors:
        """Return a decoder layer by Llama's names; `mlp` is what its MLP is called here."""
        args = self._args
        queries, groups, size = args.num_heads, args.num_kv_heads, args.head_dim
        name = f"{prefix}.self_attention.query_key_value.weight"
        fused = self.rows(name, (queries + 2 * groups) * size)
        # for each group of queries: the queries, their key, their value
        grouped = fused.view(groups, queries // groups + 2, size, args.hidden_size)
        query, key, value = torch.split(grouped, [queries // groups, 1, 1], dim=1)
        return {
            "input_layernorm": self.norm(f"{prefix}.input_norm.weight"),
            "self_attn.q_proj": query.reshape(-1, args.hidden_size),
            "self_attn.k_proj": key.reshape(-1, args.hidden_size),
            "self_attn.v_proj": value.reshape(-1, args.hidden_size),
            "self_attn.o_proj": self._columns(
                f"{prefix}.self_attention.dense.weight", queries * size
            ),
            "post_attention_layernorm": self.norm(f"{prefix}.post_attention_norm.weight"),
            **self.mlp(f"{prefix}.{mlp}"),
        }

    def skip(self, fits: Callable[[str], bool]) -> None:
        """Leave tensors alone."""
        self._left = {name for name in self._left if not fits(name)}

    def finish(self) -> None:
        """Check that every tensor has been asked for, or left alone on purpose.

        Raises:
            ModelError: some have not; the model is not what its arguments say.
        """
        if self._left:
            raise self._wrong(f"nobody asked for {', '.join(sorted(self._left)[:4])}")

    def _columns(self, name: str, columns: int) -> torch.Tensor:
        return self._shaped(
            name, torch.cat(self._take(name), dim=1), self._args.hidden_size, columns
        )

    def _take(self, name: str) -> list[torch.Tensor]:
        if any(name not in rank for rank in self._ranks):
            raise self._wrong(f"there is no {name}")
        self._left.discard(name)
        parts = [rank[name] for rank in self._ranks]
        if any(part.dtype not in _TYPES or part.dim() != parts[0].dim() for part in parts):
            raise self._wrong(f"{name} is {parts[0].dtype}, {tuple(parts[0].shape)}")
        return parts

    def _shaped(self, name: str, tensor: torch.Tensor, *shape: int) -> torch.Tensor:
        if tensor.shape != shape:
            raise self._wrong(f"{name} is {tuple(tensor.shape)}, not {shape}")
        return tensor

    def _tensors(self, file: Path) -> Tensors:
        model = load_pickled(file).get("model")
        if not isinstance(model, Mapping) or not isinstance(model.get("language_model"), Mapping):
            raise self._wrong("it holds no model.language_model")
        # the copy of the embedding in the last stage, model.word_embeddings_for_head, is not needed
        return {_current(name): x for name, x in _flat("", model["language_model"])}

    def _wrong(self, what: str) -> ModelError:
        return ModelError(
            f"the checkpoint's tensors are not what its arguments say: {what}",
            where=str(self._files[0].parent),
            fix="the shards are of different checkpoints, or the model is no Llama with exits",
        )


def _flat(prefix: str, found: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value


def _current(name: str) -> str:
    """Return a tensor's name as Megatron spells it since 2023."""
    return name.replace("layernorm", "norm").replace(".attention.", ".self_attention.")
