"""A job, checked and ready to run: input, prompts, schema, model and output folder agree."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from helios_batch import __version__
from helios_batch.data.output import OutputFolder
from helios_batch.data.prompts import PromptRenderer
from helios_batch.data.reader import RowReader
from helios_batch.data.schema import output_schema, passed_columns
from helios_batch.data.shards import ShardPlan
from helios_batch.data.source import InputTable, open_input
from helios_batch.errors import OutputError, SpecError
from helios_batch.models.exits.file import ExitFile, exit_kind, find_exits
from helios_batch.models.folder import ModelFolder, open_model
from helios_batch.shard import ShardContext
from helios_batch.spec import JobSpec, digest

_FORMAT = 1


@dataclass(frozen=True)
class Job:
    """A spec whose every reference has been resolved and checked."""

    spec: JobSpec
    table: InputTable
    renderer: PromptRenderer
    schema: pa.Schema
    model: ModelFolder
    exits: Mapping[int, ExitFile]
    output: OutputFolder

    @property
    def exit_file(self) -> ExitFile | None:
        """The exit that tokens leave through; None is the model's own final norm and head."""
        return self.exits.get(self.depth)

    @property
    def depth(self) -> int:
        """Layers to load."""
        return self.model.config.num_layers if self.spec.depth == "full" else self.spec.depth

    @property
    def shards(self) -> ShardPlan:
        """The job's shards."""
        return ShardPlan(self.table.rows, self.spec.output.rows_per_shard)

    @cached_property
    def created(self) -> datetime:
        """When the job first began: as its output folder says, or now."""
        return self.output.created() or datetime.now(UTC).replace(microsecond=0)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the output: the spec's lasting keys, the input's and model's contents."""
        files = [
            {"name": file.name, "rows": file.rows, "content": file.content_digest()}
            for file in self.table.files
        ]
        exit_digest = self.exit_file.digest if self.exit_file else None
        return {
            "spec": self.spec.identity(),
            "input": files,
            "model": self.model.digest,
            "exit": exit_digest,
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the identity; equal fingerprints resume one another."""
        return digest(self.identity)

    def context(self) -> ShardContext:
        """Return what the job's shards share; each runner of shards has its own."""
        columns = tuple(dict.fromkeys([*passed_columns(self.schema), *self.renderer.columns]))
        return ShardContext(
            table=self.table,
            reader=RowReader(self.table, columns),
            renderer=self.renderer,
            schema=self.schema,
            task=self.spec.task,
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
            "created": self.created.isoformat(),
            "policy": {
                "model": self.model.name,
                "depth": self.depth,
                "exit": exit_kind(self.model, self.depth, self.exit_file),
                "decided_by": "spec",
            },
            "versions": {"helios_batch": __version__, "python": platform.python_version()}
            | {name: version(name) for name in packages},
            "identity": self.identity,
        }


def prepare(spec: JobSpec) -> Job:
    """Resolve and check everything that a spec refers to; writes nothing.

    Raises:
        UsageError: input, columns, template, model, depth or output folder are not usable.
    """
    table = open_input(*spec.input.paths)
    renderer = PromptRenderer(spec.prompt, table)
    passed = spec.input.columns if spec.input.columns is not None else tuple(table.schema.names)
    schema = output_schema(table, passed, spec.task.choices)
    model = open_model(spec.model)
    layers = model.config.num_layers
    if spec.depth != "full" and spec.depth > layers:
        raise SpecError(
            f"depth {spec.depth} is more than the model has",
            where="depth",
            fix=f"{spec.model} has {layers} layers: write full or 1 to {layers}",
        )
    exits = find_exits(model, Path(spec.exits.path).expanduser() if spec.exits.path else None)
    output = OutputFolder(spec.output.path)
    for folder in table.folders:
        if output.path.resolve().is_relative_to(folder.resolve()):
            raise OutputError(
                "the output folder lies inside the input: its parts would be read as input",
                where=f"output.path, {output.path}",
                fix="write outside of the input folder, or name the input with a glob such as "
                f"{folder / '*.parquet'}",
            )
    return Job(spec, table, renderer, schema, model, exits, output)
