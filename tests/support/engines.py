"""A real engine on a tiny model, for tests."""

from __future__ import annotations

import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from helios_batch.engine.backbone import Backbone
from helios_batch.engine.contender import Contender
from helios_batch.engine.device import resolve
from helios_batch.engine.early_exit import EarlyExitEngine
from helios_batch.engine.engine import Engine
from helios_batch.engine.loaded import LoadedModel
from helios_batch.engine.sole import SoleEngine
from helios_batch.job import Candidate
from helios_batch.models.exits.file import ExitFile, find_exits
from helios_batch.models.folder import open_model
from helios_batch.models.tokenizer import Tokenizer
from helios_batch.records import (
    EngineFacts,
    Progress,
    Prompt,
)
from helios_batch.spec import Confidence, ResourceSpec


def make_engine(
    folder: Path,
    depth: int | None = None,
    sequence_tokens: int = 32,
    exit_file: ExitFile | None = None,
    confidence: Confidence = "probability",
    states: bool = False,
    **resources: object,
) -> Engine:
    """Load an engine; `resources` are keys of the spec's section, float32 by default."""
    model = open_model(str(folder))
    spec = ResourceSpec.model_validate({"dtype": "float32", "memory": "96MiB"} | resources)
    layers = model.config.num_layers if depth is None else depth
    tokenizer = Tokenizer(folder, datetime(2026, 1, 2, tzinfo=UTC))
    place = (model, tokenizer, layers, resolve(spec), sequence_tokens)
    return Engine(*place, exit_file, confidence, states)


def make_early_engine(
    folder: Path,
    depths: list[int],
    threshold: float,
    confidence: Confidence = "probability",
    **resources: object,
) -> EarlyExitEngine:
    """Load an engine of policy `ee` with exits at `depths`: those beside the model, or its own."""
    model = open_model(str(folder))
    spec = ResourceSpec.model_validate({"dtype": "float32", "memory": "96MiB"} | resources)
    tokenizer = Tokenizer(folder, datetime(2026, 1, 2, tzinfo=UTC))
    found = find_exits(model)
    exits = {depth: found.get(depth) for depth in depths}
    return EarlyExitEngine(model, tokenizer, exits, threshold, resolve(spec), 32, confidence)


def make_sole(*folders: Path) -> SoleEngine:
    """Return the engine of some models, the first of them loaded at full depth, in float32."""
    resources = resolve(ResourceSpec(dtype="float32", memory=96 << 20))
    found = {}
    for folder in folders:
        model = open_model(str(folder))
        tokenizer = Tokenizer(folder, datetime(2026, 1, 2, tzinfo=UTC))
        depths = Candidate(model, {}).depths
        found[model.name] = Contender(model, tokenizer, {}, depths, 64, "probability")
    sole = SoleEngine(found, resources)
    first = next(iter(found.values()))
    sole.at(first.model.name, first.depths[-1])
    return sole


def prompts(*texts: str) -> list[Prompt]:
    """Return prompts of rows 0, 1, ..."""
    return [Prompt(row, text) for row, text in enumerate(texts)]


def watch_for_doubles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count, each time that weights are to be read, what is still there that should be gone.

    That is another model with its cache, or the layers and the cache of before a move.
    """
    seen: list[weakref.ref[Any]] = []
    counts: list[int] = []
    load, read, move = LoadedModel.__init__, Backbone.read, LoadedModel.move_to

    def noted(self: LoadedModel, *args: Any, **kwargs: Any) -> None:
        counts.append(sum(old() is not None for old in seen))
        load(self, *args, **kwargs)
        seen[:] = [weakref.ref(self)]

    def moved(self: LoadedModel, *args: Any) -> None:
        parts = [weakref.ref(self.cache), weakref.ref(self.decoder)]

        def counted(backbone: Backbone, *asked: Any) -> Any:
            counts.append(sum(part() is not None for part in parts))
            return read(backbone, *asked)

        with monkeypatch.context() as patch:
            patch.setattr(Backbone, "read", counted)
            move(self, *args)

    monkeypatch.setattr(LoadedModel, "__init__", noted)
    monkeypatch.setattr(LoadedModel, "move_to", moved)
    return counts


class Silent:
    """Watches a run and says nothing."""

    def loading(self) -> None:
        """Ignore."""

    def started(self, engine: EngineFacts, rows: int, rows_done: int) -> None:
        """Ignore."""

    def step(self, progress: Progress) -> None:
        """Ignore."""

    def shard_done(self, rows: int) -> None:
        """Ignore."""
