"""How many tokens a converted model has, and which of them end a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helios_batch.errors import ModelError
from helios_batch.models.megatron.arguments import MegatronArgs

# Megatron's SentencePieceTokenizer puts <CLS>, <SEP>, <EOD> after the pieces; <EOD> ends a text
_PIECES_TOKENIZER = "SentencePieceTokenizer"
_END_OF_DOCUMENT = 2


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`size` is None where nothing tells it: the padded size of the checkpoint stays."""

    size: int | None
    begin: int | None = None
    ends: tuple[int, ...] = ()


def read_vocabulary(args: MegatronArgs, folder: Path | None) -> Vocabulary:
    """Tell the vocabulary from the arguments and the tokenizer in `folder`, if there is one.

    Raises:
        ModelError: the tokenizer can't be read.
    """
    if folder is None:
        return Vocabulary(args.vocab_size)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        size = len(tokenizer)
    except Exception as exc:  # transformers raises many kinds
        raise ModelError(
            f"the tokenizer can't be read: {exc}",
            where="--tokenizer",
            fix="name a folder that transformers reads a tokenizer from; of a tokenizer.model "
            "alone it makes one if the package sentencepiece is installed",
        ) from None
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if args.tokenizer_type == _PIECES_TOKENIZER:
        end = tokenizer.get_vocab().get("<EOD>", size + _END_OF_DOCUMENT)
        ends.append(end)
        size = max(size, end + 1)
    return Vocabulary(args.vocab_size or size, tokenizer.bos_token_id, tuple(ends))
