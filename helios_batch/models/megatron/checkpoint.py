"""An EE-LLM checkpoint as a Llama folder with exits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from helios_batch.errors import ModelError
from helios_batch.models.convert.source import Conversion, Order, copy_tokenizer
from helios_batch.models.convert.writer import FolderWriter, write_json
from helios_batch.models.exits.file import write_exit
from helios_batch.models.exits.metadata import ExitMetadata
from helios_batch.models.folder import open_model
from helios_batch.models.megatron import exits
from helios_batch.models.megatron.arguments import MegatronArgs, read_arguments
from helios_batch.models.megatron.pickled import load_pickled
from helios_batch.models.megatron.shards import Shards, find_shards
from helios_batch.models.megatron.stage import Stage
from helios_batch.models.megatron.vocabulary import Vocabulary, read_vocabulary


class MegatronCheckpoint:
    """The shards of a checkpoint, all of which are there.

    Raises:
        ModelError: a shard is missing, damaged or holds code, or the model is no Llama with exits.
    """

    def __init__(self, source: Path) -> None:
        self._shards = find_shards(source)
        first = min(self._shards.files.values())
        self._args = read_arguments(load_pickled(first), str(first))
        for stage in range(self._args.pipeline_parallel):
            self._shards.stage(stage, self._args.tensor_parallel)

    def write(self, folder: Path, order: Order) -> Conversion:
        """Merge the shards into `folder`, which is empty, and write the exits to `folder`/exits."""
        vocabulary = _tokenizer(self._args, order.tokenizer, folder)
        _write_backbone(self._shards, self._args, vocabulary, folder, order)
        conversion = _write_exits(self._shards, self._args, folder, order)
        if order.tokenizer is not None:
            return conversion
        note = (
            "the folder has no tokenizer, and one that is put there makes it another model, whose "
            "exits these are not: convert again with --tokenizer to run it"
        )
        return Conversion(conversion.depths, (*conversion.notes, note))


def _tokenizer(args: MegatronArgs, tokenizer: Path | None, work: Path) -> Vocabulary:
    if tokenizer is None:
        return read_vocabulary(args, None)
    copy_tokenizer(tokenizer, work)
    # transformers goes by it where the tokenizer's own files don't say what they are
    write_json(work / "config.json", {"model_type": "llama"})
    return read_vocabulary(args, work)


def _write_backbone(
    shards: Shards,
    args: MegatronArgs,
    vocabulary: Vocabulary,
    work: Path,
    order: Order,
) -> None:
    writer = FolderWriter(work, order.shard_bytes)
    rows, dtype = vocabulary.size, torch.float32
    for index in range(args.pipeline_parallel):
        order.report(f"merging pipeline stage {index + 1} of {args.pipeline_parallel}")
        stage = Stage(shards.stage(index, args.tensor_parallel), args)
        if index == 0:
            embedding = stage.rows("embedding.word_embeddings.weight")
            rows, dtype = _check_rows(rows, embedding, shards), embedding.dtype
            writer.add("model.embed_tokens.weight", embedding[:rows])
        for local in range(args.stage_layers):
            layer = index * args.stage_layers + local
            tensors = stage.layer(f"encoder.layers.{local}", exits.own_mlp(args, layer + 1))
            for name, tensor in tensors.items():
                writer.add(f"model.layers.{layer}.{name}.weight", tensor)
        if index == args.pipeline_parallel - 1:
            writer.add("model.norm.weight", stage.norm("encoder.final_norm.weight"))
            if not args.tied_head:
                writer.add("lm_head.weight", stage.rows("output_layer.weight")[:rows])
        stage.skip(exits.is_exit_tensor)
        stage.finish()
    writer.finish()
    write_json(work / "config.json", _config(args, vocabulary, rows or 0, dtype))


def _check_rows(size: int | None, embedding: torch.Tensor, shards: Shards) -> int:
    if size is not None and size > len(embedding):
        raise ModelError(
            f"the vocabulary has {size} tokens, the checkpoint's embedding {len(embedding)}",
            where=str(shards.folder),
            fix="name the tokenizer that the model was trained with",
        )
    return size or len(embedding)


def _write_exits(shards: Shards, args: MegatronArgs, work: Path, order: Order) -> Conversion:
    model = open_model(str(work))
    notes, depths = [], []
    for index in range(args.pipeline_parallel):
        places = [place for place in exits.exit_places(args) if place.stage == index]
        if not places:
            continue
        order.report(f"writing the exits of pipeline stage {index + 1}")
        stage = Stage(shards.stage(index, args.tensor_parallel), args)
        stage.skip(lambda tensor: not exits.is_exit_tensor(tensor))
        for place in places:
            tensors = exits.exit_tensors(stage, place, args, model.config.vocab_size)
            if not 0 < place.depth < args.num_layers:
                where = "before the first layer" if place.depth == 0 else "after the last layer"
                notes.append(f"the exit {where} is left out")
                continue
            metadata = ExitMetadata(
                kind=exits.exit_kind(args),
                backbone=model.digest,
                model=order.name,
                num_layers=args.num_layers,
                depth=place.depth,
                own_layers=int(args.exit_block),
                normed=args.exit_norm,
                temperature=place.temperature,
                training={"from": "Megatron checkpoint", "exit_layer": place.layer},
            )
            write_exit(work / "exits" / f"exit-{place.depth:02d}.safetensors", metadata, tensors)
            depths.append(place.depth)
        stage.finish()
    return Conversion(tuple(sorted(depths)), tuple(notes))


def _config(
    args: MegatronArgs, vocabulary: Vocabulary, rows: int, dtype: torch.dtype
) -> dict[str, Any]:
    scaling = None
    if args.rope_factor != 1:
        scaling = {"rope_type": "linear", "factor": args.rope_factor}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": args.num_heads,
        "num_key_value_heads": args.num_kv_heads,
        "head_dim": args.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": args.context_length,
        "rms_norm_eps": args.norm_eps,
        "rope_theta": args.rope_theta,
        "rope_scaling": scaling,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": args.tied_head,
        "bos_token_id": vocabulary.begin,
        "eos_token_id": list(vocabulary.ends) or None,
        "pad_token_id": None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
