"""A job, checked and ready to run: input, prompts, schema, model and output folder agree."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from helios_batch.helios.cascade import MOST_EARLY_STAGES
from helios_batch.helios.policy import Policy, Stage
from helios_batch.models.exits.file import ExitFile, exit_kind, find_exits
from helios_batch.models.folder import ModelFolder, open_model
from helios_batch.policy_file import read_broken, read_calibration
from helios_batch.shard import ShardContext
from helios_batch.spec import JobSpec, digest

_FORMAT = 1


@dataclass(frozen=True)
class Candidate:
    """A model that a job may run on, with its exits by depth."""

    model: ModelFolder
    exits: Mapping[int, ExitFile]

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths at which it may be left, full depth last.

        A model without exits of its own leaves only where it was given one.
        """
        layers = self.model.config.num_layers
        early = set(self.exits)
        if self.model.native_exits:
            early |= {max(1, layers * quarter // 4) for quarter in (1, 2, 3)}
        found = sorted(early - {layers})
        # of more than can be tried, some spread evenly
        step = -(-len(found) // MOST_EARLY_STAGES) or 1
        return (*found[::step], layers)


@dataclass(frozen=True)
class Job:
    """A spec whose every reference has been resolved and checked.

    `candidates` are the spec's models in their order; what runs on one model runs on the first.
    """

    spec: JobSpec
    table: InputTable
    renderer: PromptRenderer
    schema: pa.Schema
    candidates: tuple[Candidate, ...]
    output: OutputFolder

    @property
    def model(self) -> ModelFolder:
        """The first model."""
        return self.candidates[0].model

    @property
    def exits(self) -> Mapping[int, ExitFile]:
        """The first model's exits by depth."""
        return self.candidates[0].exits

    @property
    def exit_file(self) -> ExitFile | None:
        """The exit that tokens leave through; None is the model's own final norm and head."""
        return self.exits.get(self.depth)

    @property
    def depth(self) -> int:
        """Layers to load; with `depth: auto`, all that the policy may come to need."""
        asked = self.spec.depth
        return self.model.config.num_layers if isinstance(asked, str) else asked

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """The depths that `depth: auto` chooses from on one model, full depth last."""
        return self.candidates[0].depths

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where rows of a job with a promise may run, full depth of the first model last."""
        places = [
            Stage(candidate.model.name, depth)
            for candidate in self.candidates
            for depth in candidate.depths
        ]
        last = Stage(self.model.name, self.model.config.num_layers)
        early = [place for place in places if place != last]
        # of more than can be tried, some spread evenly
        step = -(-len(early) // MOST_EARLY_STAGES) or 1
        return (*early[::step], last)

    @property
    def early_exits(self) -> dict[int, ExitFile | None] | None:
        """The exits of policy `ee`, by depth; None under any other policy.

        None for an exit is the model's own final norm and head.
        """
        if self.spec.policy is None or self.spec.policy.type != "ee":
            return None
        depths = sorted({*self.exits, *self.stage_depths} - {self.model.config.num_layers})
        return {depth: self.exits.get(depth) for depth in depths}

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
        exit_digest: object = self.exit_file.digest if self.exit_file else None
        if self.spec.depth == "auto":
            exit_digest = _digests(self.exits)
        others = [
            {"model": other.model.digest, "exit": _digests(other.exits)}
            for other in self.candidates[1:]
        ]
        return {
            "spec": self.spec.identity(),
            "input": files,
            "model": self.model.digest,
            "exit": exit_digest,
        } | ({"others": others} if others else {})

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
            "policy": self._policy(),
            "versions": {"helios_batch": __version__, "python": platform.python_version()}
            | {name: version(name) for name in packages},
            "identity": self.identity,
        }

    @property
    def policy(self) -> Policy | None:
        """What was decided for `depth: auto`, once it was.

        Raises:
            OutputError: the output folder says it, and can't be read.
        """
        if self.spec.quality is None:
            return None
        found = read_calibration(self.output, self.fingerprint)
        return found.policy if found else None

    @property
    def broken(self) -> dict[str, Any] | None:
        """What an audit found that broke the promise of `depth: auto`, if one did.

        Raises:
            OutputError: the output folder says it, and can't be read.
        """
        return read_broken(self.output)

    def _policy(self) -> dict[str, Any]:
        """Return what decides at which depth the rows run."""
        model: dict[str, Any] = {"model": self.model.name}
        if (exits := self.early_exits) is not None:
            return model | {"depths": [*exits, self.depth], "decided_by": "ee"}
        if self.spec.policy is not None:
            names = [candidate.model.name for candidate in self.candidates]
            told = {"models": names, "decided_by": self.spec.policy.type}
            return told | self.spec.policy.model_dump()
        if self.spec.depth == "auto":
            made = asdict(self.policy) if self.policy else {}
            return model | {"decided_by": "calibration", "broken": self.broken} | made
        kind = exit_kind(self.model, self.depth, self.exit_file)
        return model | {"depth": self.depth, "exit": kind, "decided_by": "spec"}


def prepare(spec: JobSpec) -> Job:
    """Resolve and check everything that a spec refers to; writes nothing.

    Raises:
        UsageError: input, columns, template, model, depth or output folder are not usable.
    """
    table = open_input(*spec.input.paths)
    renderer = PromptRenderer(spec.prompt, table)
    passed = spec.input.columns if spec.input.columns is not None else tuple(table.schema.names)
    schema = output_schema(table, passed, spec.task.choices)
    candidates = tuple(_candidate(spec, name) for name in spec.models)
    model = candidates[0].model
    layers = model.config.num_layers
    if isinstance(spec.depth, int) and spec.depth > layers:
        raise SpecError(
            f"depth {spec.depth} is more than the model has",
            where="depth",
            fix=f"{spec.model} has {layers} layers: write full or 1 to {layers}",
        )
    if spec.depth == "auto" and not any(len(candidate.depths) > 1 for candidate in candidates):
        named = " and ".join(spec.models)
        raise SpecError(
            f"{named} {'has' if len(candidates) == 1 else 'have'} no exits to choose from",
            where="depth",
            fix=f"make some with: helios-batch models tune {spec.model}, and name their folder in "
            "exits.path; or write depth: full",
        )
    if spec.policy is not None and spec.policy.type == "ee":
        _refuse_adapted(candidates[0].exits)
    output = OutputFolder(spec.output.path)
    for folder in table.folders:
        if output.path.resolve().is_relative_to(folder.resolve()):
            raise OutputError(
                "the output folder lies inside the input: its parts would be read as input",
                where=f"output.path, {output.path}",
                fix="write outside of the input folder, or name the input with a glob such as "
                f"{folder / '*.parquet'}",
            )
    return Job(spec, table, renderer, schema, candidates, output)


def _candidate(spec: JobSpec, name: str) -> Candidate:
    """Open a model with its exits; of several models, `exits.path` has a folder for each."""
    model = open_model(name)
    folder = Path(spec.exits.path).expanduser() if spec.exits.path else None
    if folder is not None and len(spec.models) > 1:
        folder = folder / Path(name).name
        folder = folder if folder.is_dir() else None
    return Candidate(model, find_exits(model, folder))


def _digests(exits: Mapping[int, ExitFile]) -> dict[str, str]:
    return {str(depth): exits[depth].digest for depth in sorted(exits)}


def _refuse_adapted(exits: Mapping[int, ExitFile]) -> None:
    """Refuse exits that a token can't reach and pass in one run of the layers."""
    adapted = [depth for depth, found in sorted(exits.items()) if found.first_adapted < depth]
    if adapted:
        raise SpecError(
            f"the exits at depths {adapted} change layers of the model before them: a token that "
            "goes on would have to run these again as they were",
            where="policy, ee",
            fix="name exits tuned without --adapt in exits.path, or choose another policy",
        )
