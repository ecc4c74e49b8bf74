"""A job, checked and ready to run: input, prompts, schema, model and output folder agree."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from helios_batch import __version__
from helios_batch.data.output import OutputFolder
from helios_batch.data.prompts import PromptRenderer
from helios_batch.data.reader import RowReader
from helios_batch.data.schema import output_schema
from helios_batch.data.shards import ShardPlan
from helios_batch.data.source import InputTable, open_input
from helios_batch.errors import ModelError, SpecError
from helios_batch.models.folder import ModelFolder, open_model
from helios_batch.shard import ShardContext
from helios_batch.spec import JobSpec, digest

if TYPE_CHECKING:
    from helios_batch.engine.engine import Engine

_FORMAT = 1
_TYPICAL_PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Job:
    """A spec whose every reference has been resolved and checked."""

    spec: JobSpec
    table: InputTable
    renderer: PromptRenderer
    passed: tuple[str, ...]
    schema: pa.Schema
    model: ModelFolder
    output: OutputFolder

    @property
    def depth(self) -> int:
        """Layers to load."""
        return self.model.config.num_layers if self.spec.depth == "full" else self.spec.depth

    @property
    def shards(self) -> ShardPlan:
        """The job's shards."""
        return ShardPlan(self.table.rows, self.spec.output.rows_per_shard)

    @property
    def sequence_tokens(self) -> int:
        """Tokens that memory must hold for one sequence before the job is begun."""
        wanted = self.spec.sampling.max_tokens + _TYPICAL_PROMPT_TOKENS
        return min(wanted, self.model.config.context_length)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the output: the spec's lasting keys, the input's and model's contents."""
        files = [
            {"name": file.name, "rows": file.rows, "content": file.content_digest()}
            for file in self.table.files
        ]
        return {"spec": self.spec.identity(), "input": files, "model": self.model.digest}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the identity; equal fingerprints resume one another."""
        return digest(self.identity)

    def context(self) -> ShardContext:
        """Return what the job's shards share; each runner of shards has its own."""
        columns = tuple(dict.fromkeys([*self.passed, *self.renderer.columns]))
        return ShardContext(
            table=self.table,
            reader=RowReader(self.table, columns),
            renderer=self.renderer,
            passed=self.passed,
            sampling=self.spec.sampling,
            output=self.output,
            fingerprint=self.fingerprint,
        )

    def record(self) -> dict[str, Any]:
        """Return what `_job.json` says before the first row."""
        packages = ("torch", "transformers", "pyarrow")
        return {
            "format": _FORMAT,
            "name": self.spec.name,
            "status": "running",
            "fingerprint": self.fingerprint,
            "spec": self.spec.model_dump(mode="json"),
            "rows": self.table.rows,
            "shards": len(self.shards),
            "policy": {"model": self.model.name, "depth": self.depth, "decided_by": "spec"},
            "versions": {"helios_batch": __version__, "python": platform.python_version()}
            | {name: version(name) for name in packages},
            "identity": self.identity,
        }


def prepare(spec: JobSpec) -> Job:
    """Resolve and check everything that a spec refers to; writes nothing.

    Raises:
        UsageError: input, columns, template, model, depth or output folder are not usable.
    """
    table = open_input(spec.input.path)
    renderer = PromptRenderer(spec.prompt, table)
    passed = spec.input.columns if spec.input.columns is not None else tuple(table.schema.names)
    schema = output_schema(table, passed)
    model = open_model(spec.model)
    layers = model.config.num_layers
    if spec.depth != "full" and spec.depth > layers:
        raise SpecError(
            f"depth {spec.depth} is more than the model has",
            where="depth",
            fix=f"{spec.model} has {layers} layers: write full or 1 to {layers}",
        )
    output = OutputFolder(spec.output.path)
    return Job(spec, table, renderer, passed, schema, model, output)


def load_engine(job: Job) -> Engine:
    """Load the engine that a job asks for.

    Raises:
        ModelError: weights or tokenizer can't be read, or chat is asked of a model without it.
        ResourceError: the device is not there, or memory is too small.
    """
    from helios_batch.engine.device import resolve  # noqa: PLC0415 - torch takes a second
    from helios_batch.engine.engine import Engine  # noqa: PLC0415

    engine = Engine(job.model, job.depth, resolve(job.spec.resources), job.sequence_tokens)
    if job.renderer.makes_chat and not engine.tokenizer.has_chat_template:
        raise ModelError(
            f"model {job.model.name!r} has no chat template",
            where="prompt",
            fix="leave out prompt.system and prompt.messages and write the whole prompt as a "
            "template, or use an instruction-tuned model",
        )
    return engine
