"""What EE-LLM's exits are in our exit files."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from helios_batch.models.megatron.arguments import MegatronArgs
from helios_batch.models.megatron.stage import Stage, Tensors
from helios_batch.models.tensor_names import LLAMA


@dataclass(frozen=True, slots=True)
class ExitPlace:
    """An exit of the checkpoint: its layer, numbered from 1, and where its parts lie."""

    layer: int
    stage: int
    local_layer: int
    head: int
    depth: int
    temperature: float

    @property
    def prefix(self) -> str:
        """What the names of its tensors in the stage begin with."""
        return f"encoder.layers.{self.local_layer}."


def exit_places(args: MegatronArgs) -> list[ExitPlace]:
    """Return the exits, heads counted within each stage in the order of the arguments."""
    places: list[ExitPlace] = []
    for layer, temperature in zip(args.exit_layers, args.exit_temperatures, strict=True):
        stage, local = divmod(layer - 1, args.stage_layers)
        head = sum(place.stage == stage for place in places)
        places.append(ExitPlace(layer, stage, local, head, args.depth(layer), temperature))
    return places


def exit_kind(args: MegatronArgs) -> str:
    """Return the kind of the checkpoint's exits, by the largest thing they bring along."""
    if args.exit_block:
        return "layer:1"
    return "mlp" if args.exit_mlp else "norm"


def own_mlp(args: MegatronArgs, layer: int) -> str:
    """Return what a layer's own MLP is called; layers are numbered from 1."""
    return "mlp.trunk" if args.exit_mlp and layer in args.exit_layers else "mlp"


def is_exit_tensor(name: str) -> bool:
    """Tell whether a tensor of a stage is of an exit, not of the model itself."""
    return name.startswith("exit_output_layer.") or any(
        part in name for part in (".mlp.branch.", ".exit_block.", ".exit_norm.")
    )


def exit_tensors(stage: Stage, place: ExitPlace, args: MegatronArgs, rows: int) -> Tensors:
    """Return an exit's tensors as an exit file has them; `rows` is the size of the vocabulary."""
    found: Tensors = {}
    if args.exit_mlp:
        branch = _fused(stage.mlp(f"{place.prefix}mlp.branch"))
        # the layer runs as far as its MLP, and then through the branch instead
        found |= {f"replace.{place.depth - 1}.{slot}": x for slot, x in branch.items()}
    if args.exit_block:
        block = _fused(stage.layer(f"{place.prefix}exit_block"))
        found |= {f"layers.0.{slot}": tensor for slot, tensor in block.items()}
    if args.exit_norm:
        found["norm.weight"] = stage.norm(f"{place.prefix}exit_norm.weight")
    if args.untied_exits:
        found["head.weight"] = stage.rows(f"exit_output_layer.{place.head}.weight")[:rows]
    return found


def _fused(named: Tensors) -> Tensors:
    """Return Llama's tensors fused as the decoder has them."""
    return {
        f"{slot}.weight": torch.cat([named[source] for source in sources])
        for slot, sources in LLAMA.layer.items()
        if sources[0] in named
    }
