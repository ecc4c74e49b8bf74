"""The job spec as frozen models that forbid unknown keys.

Keys that belong to the contract but are not built yet are refused by name, never ignored.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from helios_batch.spec_policy import Objective, PolicySpec
from helios_batch.spec_quality import Metric, QualitySpec
from helios_batch.spec_section import Real, Section
from helios_batch.units import parse_bytes, parse_duration, parse_share_or_count

_OF_TOKENS = ("token", "perplexity")


def _not_built(what: str) -> ValueError:
    return ValueError(f"{what} is not available in this version")


Bytes = Annotated[int, BeforeValidator(parse_bytes)]


class InputSpec(Section):
    """Where the rows come from, and which columns pass through to the output.

    `path` is a file, a folder, a glob or a URL, or a list of them, read in the order given.
    """

    path: str | tuple[str, ...]
    columns: tuple[str, ...] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The path, or each of the list."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @field_validator("path", mode="before")
    @classmethod
    def _path_or_list(cls, value: object) -> object:
        paths = tuple(value) if isinstance(value, list | tuple) else (value,)
        named = all(isinstance(path, str) and path for path in paths)
        if not paths or not named or len(set(paths)) < len(paths):
            raise ValueError("write a path, or a list of one path or more, each once")
        return value if isinstance(value, str) else paths

    @field_validator("columns", mode="before")
    @classmethod
    def _columns_are_distinct(cls, value: object) -> object:
        if isinstance(value, list):
            if len(set(map(str, value))) != len(value):
                raise ValueError("name each column once")
            return tuple(value)
        return value


class PromptSpec(Section):
    """How a row becomes a prompt: exactly one of template, column, messages.

    With `system` or `messages` the model's chat template is applied; without, the text is
    continued as it stands.
    """

    template: str | None = None
    column: str | None = None
    messages: str | None = None
    system: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [k for k in ("template", "column", "messages") if getattr(self, k) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            raise ValueError(f"give exactly one of template, column, messages (found {found})")
        if self.messages is not None and self.system is not None:
            raise ValueError(
                "system goes with template or column; messages carry their own system message"
            )
        return self


class TaskSpec(Section):
    """What is produced for each row: a continuation, or the likeliest of `choices`.

    A choice is appended to the prompt exactly as it is written. Nothing is sampled for a label, so
    such a job refuses sampling settings; `sampling.max_tokens` has no say, as choices are scored
    whole.
    """

    type: Literal["generate", "label"] = "generate"
    choices: tuple[str, ...] = ()

    @field_validator("choices", mode="before")
    @classmethod
    def _distinct_texts(cls, value: object) -> object:
        choices = tuple(value) if isinstance(value, list | tuple) else (value,)
        other = next((choice for choice in choices if not isinstance(choice, str)), None)
        if isinstance(value, list | tuple) and other is not None:
            # an unquoted yes or no is a boolean to YAML
            raise ValueError(f"a choice is a text: put {other!r} in quotes")
        if choices and (len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices)):
            raise ValueError("write a list of two or more texts, each once and none of them empty")
        return choices

    @model_validator(mode="after")
    def _choices_go_with_labels(self) -> Self:
        if self.type == "label" and not self.choices:
            raise ValueError("type label needs choices: a list of two or more texts")
        if self.type == "generate" and self.choices:
            raise ValueError("choices go with type label")
        return self


class SamplingSpec(Section):
    """Sampling under OpenAI's and vLLM's names; temperature 0 is greedy."""

    max_tokens: int = Field(default=128, ge=1)
    temperature: Real = Field(default=0.0, ge=0.0, le=10.0, allow_inf_nan=False)
    top_p: Real = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    ignore_eos: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_list(cls, value: object) -> object:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    @field_validator("temperature")
    @classmethod
    def _not_nearly_greedy(cls, value: float) -> float:
        if 0 < value < 0.01:
            raise ValueError("write 0 for greedy, or 0.01 or more")
        return value


Confidence = Literal["probability", "margin"]


class ExitSpec(Section):
    """Where the exits come from, and how sure a token is said to be.

    `path` is a folder that `models tune` wrote; without it, the exits that come with the model are
    used. Confidence is the probability of the most likely token, or its lead over the next.
    """

    path: str | None = Field(default=None, min_length=1)
    confidence: Confidence = "probability"


class OutputSpec(Section):
    """Where the parts go, and how many rows a shard has."""

    path: str = Field(min_length=1)
    rows_per_shard: int = Field(default=512, ge=1)


class ResourceSpec(Section):
    """What one engine may use. `memory` holds weights, KV cache and activations together."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    memory: Bytes | None = None
    threads: int | None = Field(default=None, ge=1)
    max_batch: int | None = Field(default=None, ge=1)


class LimitSpec(Section):
    """When a job gives up; what is finished stays, and running it again goes on.

    `max_failed_rows` is a share of all rows (float) or a count (int). `deadline` is in seconds from
    the start of a run, or from the submission to a queue.
    """

    max_failed_rows: Annotated[int | float, BeforeValidator(parse_share_or_count)] | None = None
    max_total_tokens: None = None
    deadline: Annotated[float | None, BeforeValidator(parse_duration)] = None

    @field_validator("max_total_tokens", mode="before")
    @classmethod
    def _limits_not_built(cls, value: object) -> object:
        if value is not None:
            raise _not_built("this limit")
        return value

    @field_validator("max_failed_rows")
    @classmethod
    def _not_negative(cls, value: float | None) -> float | None:
        if value is not None and value < 0:
            raise ValueError("a number of rows can't be negative")
        return value

    def failed_rows_allowed(self, total_rows: int) -> int | None:
        """Return how many of `total_rows` may fail, or None for any number."""
        if isinstance(self.max_failed_rows, float):
            return int(self.max_failed_rows * total_rows)
        return self.max_failed_rows


class JobSpec(Section):
    """One job, complete. `spec_file.load_spec` reads one."""

    name: str = Field(min_length=1, max_length=200)
    input: InputSpec
    prompt: PromptSpec
    task: TaskSpec = TaskSpec()
    sampling: SamplingSpec = SamplingSpec()
    models: tuple[Annotated[str, Field(min_length=1)], ...]
    depth: Literal["full", "auto"] | int = "full"
    exits: ExitSpec = ExitSpec()
    quality: QualitySpec | None = Field(default=None, validate_default=True)
    policy: PolicySpec | None = Field(default=None, validate_default=True)
    objective: Objective = "throughput"
    output: OutputSpec
    resources: ResourceSpec = ResourceSpec()
    limits: LimitSpec = LimitSpec()

    @field_validator("sampling")
    @classmethod
    def _labels_are_not_sampled(cls, value: SamplingSpec, info: ValidationInfo) -> SamplingSpec:
        task = info.data.get("task")
        if task is not None and task.type == "label":
            for key, field in SamplingSpec.model_fields.items():
                if key != "max_tokens" and getattr(value, key) != field.default:
                    raise ValueError(
                        f"{key} has no meaning in a label task, whose choices are scored and not "
                        "sampled: leave it out"
                    )
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _distinct_models(cls, value: object) -> object:
        if not isinstance(value, list | tuple) or not value:
            raise ValueError("write a list of one model or more: packs, hub ids or folders")
        if len(set(map(str, value))) != len(value):
            raise ValueError("name each model once")
        return tuple(value)

    @field_validator("depth", mode="before")
    @classmethod
    def _full_auto_or_layers(cls, value: object) -> object:
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value not in ("full", "auto") and not is_count:
            raise ValueError("write full, auto or a number of layers, 1 or more")
        return value

    @field_validator("quality")
    @classmethod
    def _quality_goes_with_auto(
        cls, value: QualitySpec | None, info: ValidationInfo
    ) -> QualitySpec | None:
        depth, task, sampling = (info.data.get(key) for key in ("depth", "task", "sampling"))
        if depth is None or task is None or sampling is None:  # said elsewhere
            return value
        if depth != "auto":
            if value is not None:
                raise ValueError("quality is kept by choosing the depth: write depth: auto with it")
            return value
        if value is None:
            return None
        if sampling.temperature > 0:
            raise ValueError(
                "agreement with full depth is that of greedy texts: write sampling.temperature: 0 "
                "with depth auto"
            )
        if value.metric and (value.metric == "label") != (task.type == "label"):
            raise ValueError(f"metric {value.metric} does not go with a task of type {task.type}")
        return value

    @field_validator("policy")
    @classmethod
    def _policy_goes_with_depth(
        cls, value: PolicySpec | None, info: ValidationInfo
    ) -> PolicySpec | None:
        models, depth, quality = (info.data.get(key) for key in ("models", "depth", "quality"))
        if models is None or depth is None or "quality" not in info.data:  # said elsewhere
            return value
        if value is None:
            if depth == "auto" and quality is None:
                value = PolicySpec(type="helios" if len(models) > 1 else "helios-single")
        elif quality is not None:
            raise ValueError("a job with quality makes its own policy: leave out one of the two")
        elif (depth == "auto") != (value.type != "vanilla"):
            wanted = "full" if value.type == "vanilla" else "auto"
            raise ValueError(f"policy {value.type} goes with depth: {wanted}")
        chooses = depth == "auto" and (value is None or value.type == "helios")
        if len(models) > 1 and not chooses:
            raise ValueError(
                "of several models only policy helios and a promise of quality choose: write "
                "depth: auto, or name one model"
            )
        of_tokens = quality is not None and quality.metric in (None, *_OF_TOKENS)
        if len(models) > 1 and of_tokens and info.data["task"].type != "label":
            raise ValueError(
                "texts of several models, whose tokens may differ, are compared by quality's "
                "metric exact or rouge_l: write one of them"
            )
        return value

    @field_validator("objective")
    @classmethod
    def _objective_goes_with_a_choice(cls, value: Objective, info: ValidationInfo) -> Objective:
        policy = info.data.get("policy")
        if value != "throughput" and "policy" in info.data and not (policy and policy.chooses):
            raise ValueError(
                "an objective other than throughput is one of the policies helios-single and "
                "helios: write depth: auto without quality"
            )
        return value

    @property
    def metric(self) -> Metric:
        """What agreement with full depth is measured by."""
        default: Metric = "label" if self.task.type == "label" else "token"
        return (self.quality.metric if self.quality else None) or default

    @property
    def model(self) -> str:
        """The one model this job runs on."""
        return self.models[0]

    def identity(self) -> dict[str, Any]:
        """Return the keys that decide what the output holds, for the job's fingerprint.

        Resources, limits, the name and the place of the output may change between runs of one job.
        Sampling has no part in labels, nor have choices in what is generated.
        That all its parts have one dtype is checked against the parts themselves, as `auto` means
        another one on another machine.
        """
        data = self.model_dump(mode="json")
        data["rows_per_shard"] = data.pop("output")["rows_per_shard"]
        # the exit that is used is in the job's identity by its contents
        data["exits"] = self.exits.confidence
        del data["name"], data["limits"], data["resources"]
        if self.task.type == "label":
            del data["sampling"]
        else:
            del data["task"]["choices"]
        return data


def digest(data: object) -> str:
    """Return the SHA-256 of `data` as canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
