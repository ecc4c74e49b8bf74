"""The nouns that every part of the package shares: prompts, generations, what an engine is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self, TypedDict

from helios_batch.spec import SamplingSpec


class ErrorCode(StrEnum):
    """Stable codes of `error.code` in the output."""

    NULL_PROMPT = "null_prompt"
    EMPTY_PROMPT = "empty_prompt"
    TEMPLATE_ERROR = "template_error"
    PROMPT_TOO_LONG = "prompt_too_long"
    EXCEEDS_MEMORY = "exceeds_memory"
    UNKNOWN_TOKEN = "unknown_token"
    BAD_MESSAGES = "bad_messages"
    QUARANTINED = "quarantined"


class FinishReason(StrEnum):
    """Why a row's generation ended."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one row has no generation; the job goes on."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row's prompt, rendered and not yet tokenized.

    `row` is the row's number in the whole input and keys its random generator. `content` is plain
    text to be continued as it stands, or chat messages for the model's own template.
    """

    row: int
    content: str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """Where each token of a row left the model, and how sure the exit was.

    `token_layers` and `token_confidences` have one entry per completion token; a confidence is the
    probability of the most likely token at the exit, before temperature and filters. The tokens of
    a label leave together: each has the label's probability among the choices.
    `reactions` says how the policy moved while the row was in flight, as in "10 to 20 layers after
    12 tokens". With a switch of models, `model` and `num_layers` are those of the last token.
    Of a policy only: `breaches` counts the tokens under its threshold, `stage` is where in its
    cascade the row left; an `audited` row was run at full depth too, with which it has `agreement`,
    0 to 1: for the metric perplexity, 1 less the share of `LARGEST_EXCESS` by which its text's mean
    negative log-likelihood, to full depth, is over that of full depth's own.
    Under `ee` tokens of one row leave at different layers, and there are no breaches: a token under
    the threshold does not leave early.
    """

    model: str
    num_layers: int
    token_layers: tuple[int, ...]
    token_confidences: tuple[float, ...]
    breaches: int | None = None
    stage: int = 0
    audited: bool = False
    agreement: float | None = None
    reactions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """What became of one prompt. `text` and `exit` are None exactly when `error` is set.

    `token_ids` are the completion's, an end-of-text token included; the output does not hold them.
    Of a label task only: `label` is the likeliest choice, which is the text too, and
    `label_probability` has one entry per choice, in the spec's order; they add up to 1.
    """

    row: int
    text: str | None
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    exit: ExitRecord | None
    error: RowError | None = None
    token_ids: tuple[int, ...] = ()
    label: str | None = None
    label_probability: tuple[float, ...] | None = None

    @classmethod
    def failed(cls, row: int, error: RowError, prompt_tokens: int = 0) -> Generation:
        """Return the generation of a row that could not be run."""
        return cls(row, None, FinishReason.ERROR, prompt_tokens, 0, None, error)


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine is for as long as it lives; sizes in bytes.

    `layers_run` counts the loaded layers and those of the exit; `exit` says what tokens leave
    through: `full` depth, a kind of exit head, `native` (the model was trained to be left there),
    `plain` (it was not), or `ee`, the first exit that is sure of the token.
    `weight_bytes_loaded` and `weight_bytes_left` are counted in the checkpoint's own files;
    `batch_limit` is the planned batch size; `weight_bytes` and `kv_bytes_per_token` are the planned
    memory of weights and of a token's keys and values.
    """

    model: str
    num_layers: int
    layers_loaded: int
    device: str
    dtype: str
    weight_bytes_loaded: int
    weight_bytes_left: int
    memory_budget: int
    batch_limit: int
    layers_run: int = 0
    exit: str = ""
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0


@dataclass(slots=True)
class EngineStats:
    """What a call of the engine took: seconds, decoded tokens and steps, and the largest batch.

    Under a policy `load_seconds` go into moving between depths and models; `longest_stall` is the
    most that sequences in flight have waited for one of these moves, `expected_stall` the most
    that the performance history table has expected of one.
    `profile_seconds` go into trying requests on the candidates. `moves` counts changes of place by
    kind, `engines` lists what took part beside what there is at the end.
    `audit_losses` counts the rows drawn to be audited by their loss (see `audit.in_thousandths`).
    Labels are scored in prefill steps alone.
    """

    load_seconds: float = 0.0
    longest_stall: float = 0.0
    expected_stall: float = 0.0
    profile_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_tokens: int = 0
    decode_steps: int = 0
    largest_batch: int = 0
    moves: Counter[str] = field(default_factory=Counter)
    engines: list[EngineFacts] = field(default_factory=list)
    audit_losses: Counter[int] = field(default_factory=Counter)

    def __iadd__(self, other: EngineStats) -> Self:
        self.load_seconds += other.load_seconds
        self.longest_stall = max(self.longest_stall, other.longest_stall)
        self.prefill_seconds += other.prefill_seconds
        self.decode_seconds += other.decode_seconds
        self.decode_tokens += other.decode_tokens
        self.decode_steps += other.decode_steps
        self.largest_batch = max(self.largest_batch, other.largest_batch)
        self.expected_stall = max(self.expected_stall, other.expected_stall)
        self.profile_seconds += other.profile_seconds
        self.moves.update(other.moves)
        self.engines += [engine for engine in other.engines if engine not in self.engines]
        self.audit_losses.update(other.audit_losses)
        return self


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a call of the engine stands after a step."""

    rows_done: int
    new_tokens: int
    batch: int


class Generator(Protocol):
    """What a shard needs of an engine."""

    @property
    def facts(self) -> EngineFacts:
        """What the engine is."""
        ...

    @property
    def stats(self) -> EngineStats:
        """What its last call took."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSpec,
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Return one generation per prompt, in the same order."""
        ...

    def label(
        self,
        prompts: Sequence[Prompt],
        choices: Sequence[str],
        on_step: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Return one labelled generation per prompt, in the same order."""
        ...
