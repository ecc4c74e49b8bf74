"""What the model at full depth thinks of a text, written to disk once and read many times.

Of each token: the hidden states at the exits and at the tail's entrances, the final ones, and the
most likely next tokens with their log-probabilities. Hidden states are kept in bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from helios_batch.models.decoder import Decoder
from helios_batch.models.tuning.attention import PaddedAttention

TOP = 16
"""Next tokens that are kept of each position's distribution."""
_STEP_TOKENS = 4096
_HEAD_ROWS = 64
_GROUP = 128


class Text(NamedTuple):
    """A prompt's tokens and the model's own continuation, and how many of them are the prompt's."""

    tokens: Sequence[int]
    prompt: int


class TextBatch(NamedTuple):
    """Texts padded at the right: tokens [B, L] int64, and lengths and prompt lengths [B]."""

    tokens: torch.Tensor
    lengths: torch.Tensor
    prompts: torch.Tensor

    @property
    def positions(self) -> torch.Tensor:
        """Positions [B * L] of all tokens in their texts."""
        batch, length = self.tokens.shape
        return torch.arange(length).repeat(batch)

    @property
    def within(self) -> torch.Tensor:
        """Whether a place [B, L] holds a token rather than padding."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    @property
    def decides(self) -> torch.Tensor:
        """Whether a place [B, L] is one at which the model wrote its next token itself."""
        place = torch.arange(self.tokens.shape[1])
        return (place >= self.prompts[:, None] - 1) & (place < self.lengths[:, None] - 1)


@dataclass(frozen=True)
class StateBatch:
    """Texts with what the full model thought: hidden [B, L, hidden_size] by layers passed, the
    most likely next tokens [B, L, TOP] int64 and their log-probabilities, float32."""

    texts: TextBatch
    hidden: dict[int, torch.Tensor]
    top_tokens: torch.Tensor
    top_logprobs: torch.Tensor


def pad(texts: Sequence[Text]) -> TextBatch:
    """Return texts as one batch."""
    lengths = torch.tensor([len(text.tokens) for text in texts])
    tokens = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text.tokens)] = torch.tensor(text.tokens)
    return TextBatch(tokens, lengths, torch.tensor([text.prompt for text in texts]))


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Group texts of like length into batches of at most `tokens` places, padding included.

    Returns:
        Indices of the texts of each batch; a text longer than `tokens` has a batch of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not groups or (len(groups[-1]) + 1) * lengths[index] > tokens:
            groups.append([])
        groups[-1].append(index)
    return groups


class StateCache:
    """A folder of hidden states of `texts` after each of `layers` layers.

    Texts that don't fit into `max_bytes` of disk are left out, from the end. Writing goes on where
    it was interrupted.
    """

    def __init__(
        self,
        folder: Path,
        texts: Sequence[Text],
        layers: Sequence[int],
        hidden: int,
        max_bytes: int,
    ) -> None:
        self._folder = folder
        self._layers, self._size = sorted(layers), hidden
        room = max_bytes // (hidden * 2 * len(self._layers) + TOP * 6)
        ends = np.cumsum([len(text.tokens) for text in texts])
        self.texts = list(texts[: int(np.searchsorted(ends, room, side="right"))])
        self._starts = [0, *ends[: len(self.texts)].tolist()]
        self.tokens = int(self._starts[-1])
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, decoder: Decoder, progress: Callable[[int], None]) -> None:
        """Run the full model over all texts that are not written yet.

        Args:
            decoder: the model at full depth, without an exit.
            progress: called with the number of tokens done, after each step.
        """
        groups = batches([len(text.tokens) for text in self.texts], _STEP_TOKENS)
        note = self._folder / "done.json"
        done = json.loads(note.read_text())["groups"] if note.exists() else 0
        files, tokens = self._open("r+" if done else "w+"), 0
        for number, group in enumerate(groups):
            if number >= done:
                self._write_group(decoder, group, files)
                note.write_text(json.dumps({"groups": number + 1}))
            tokens += sum(len(self.texts[i].tokens) for i in group)
            progress(tokens)

    def read(self, indices: Sequence[int], layers: Sequence[int]) -> StateBatch:
        """Return some texts as one batch, with hidden states of `layers` only."""
        texts = pad([self.texts[i] for i in indices])
        files, shape = self._open("r"), texts.tokens.shape
        hidden = {k: torch.zeros(*shape, self._size, dtype=torch.bfloat16) for k in layers}
        top_tokens = torch.zeros(*shape, TOP, dtype=torch.int64)
        top_logprobs = torch.full((*shape, TOP), float("-inf"))
        for row, index in enumerate(indices):
            place = slice(self._starts[index], self._starts[index + 1])
            count = place.stop - place.start
            for layer, states in hidden.items():
                stored = torch.from_numpy(np.array(files[f"hidden-{layer}"][place]))
                states[row, :count] = stored.view(torch.bfloat16)
            top_tokens[row, :count] = torch.from_numpy(files["top-tokens"][place].astype(np.int64))
            top_logprobs[row, :count] = torch.from_numpy(
                files["top-logprobs"][place].astype(np.float32)
            )
        return StateBatch(texts, hidden, top_tokens, top_logprobs)

    def batches(self, indices: Sequence[int], tokens: int) -> list[list[int]]:
        """Group the texts `indices` into batches of at most `tokens` places."""
        lengths = [len(self.texts[i].tokens) for i in indices]
        return [[indices[i] for i in group] for group in batches(lengths, tokens)]

    def _open(self, mode: Literal["r", "r+", "w+"]) -> dict[str, np.memmap]:
        """Map the files, each [tokens, width]."""
        files: list[tuple[str, int, type[np.generic]]] = [
            *((f"hidden-{layer}", self._size, np.int16) for layer in self._layers),
            ("top-tokens", TOP, np.int32),
            ("top-logprobs", TOP, np.float16),
        ]
        return {
            name: np.memmap(self._folder / f"{name}.bin", kind, mode, shape=(self.tokens, width))
            for name, width, kind in files
        }

    @torch.inference_mode()
    def _write_group(
        self, decoder: Decoder, group: Sequence[int], files: dict[str, np.memmap]
    ) -> None:
        texts = pad([self.texts[i] for i in group])
        device = decoder.weights.embedding.device
        attention = PaddedAttention(decoder.config, decoder.kinds, *texts.tokens.shape)
        tokens, positions = texts.tokens.flatten().to(device), texts.positions.to(device)
        within, last = texts.within.flatten().to(device), None
        spans = [slice(self._starts[i], self._starts[i + 1]) for i in group]

        def store(name: str, values: torch.Tensor) -> None:
            array, first = values.cpu().numpy(), 0
            for span in spans:
                count = span.stop - span.start
                files[name][span] = array[first : first + count]
                first += count

        for layer, states in enumerate(decoder.states(tokens, positions, attention)):
            last = states
            if layer in self._layers:
                store(f"hidden-{layer}", states[within].to(torch.bfloat16).view(torch.int16))
        assert last is not None, "a decoder yields at least its embedding"
        normed = decoder.final_norm(last[within])
        parts = [
            _likeliest(normed[begin : begin + _HEAD_ROWS] @ decoder.head.T)
            for begin in range(0, len(normed), _HEAD_ROWS)
        ]
        store("top-tokens", torch.cat([tokens for tokens, _ in parts]).to(torch.int32))
        store("top-logprobs", torch.cat([chances for _, chances in parts]).to(torch.float16))


def _likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `TOP` most likely tokens of each row [R, vocab_size], and their log-probabilities.

    The best of all are among the best of the groups that have the highest maxima, which takes a
    quarter of the time of `topk` over the whole vocabulary.
    """
    rows, size = logits.shape
    padded = F.pad(logits, (0, -size % _GROUP), value=float("-inf"))
    groups = padded.view(rows, -1, _GROUP)
    best = groups.amax(-1).topk(min(TOP, groups.shape[1]), dim=-1).indices
    found = groups.gather(1, best[..., None].expand(-1, -1, _GROUP)).flatten(1).float()
    top = found.topk(TOP, dim=-1)
    tokens = best.gather(1, top.indices // _GROUP) * _GROUP + top.indices % _GROUP
    highest = top.values[:, :1]
    total = (logits.float() - highest).exp_().sum(dim=-1, keepdim=True)
    return tokens, top.values - highest - total.log_()
