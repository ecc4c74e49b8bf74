"""The output of `models show`: a model's shape, weights by depth, exits, and measurements."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from helios_batch.engine.memory import weight_bytes
from helios_batch.errors import ModelError
from helios_batch.models.exits.file import ExitFile, find_exits
from helios_batch.models.folder import ModelFolder, open_model
from helios_batch.models.repository.entry import Entry
from helios_batch.report.facts import facts_table
from helios_batch.report.repository import entry_facts, measured_table


def describe(name: str, entry: Entry | None) -> dict[str, Any]:
    """Return a model's shape, its exits, and under `repository` what is known of it there.

    A model that is not at hand, but known to the repository, has `not_at_hand` instead of a shape.

    Raises:
        ModelError: nothing is known by that name, or an exit beside the model is damaged or of
            another model.
    """
    known = entry.model_dump(mode="json", exclude_none=True) if entry else None
    try:
        model = open_model(name)
    except ModelError as exc:
        if entry is None:
            raise
        return {"name": name, "not_at_hand": exc.what, "exits": [], "repository": known}
    return _shape(model) | {"repository": known}


def _shape(model: ModelFolder) -> dict[str, Any]:
    """Return a model's shape, its weights in bfloat16 bytes by depth, and its own exits."""
    config = model.config
    layers = config.num_layers
    depths = sorted({max(1, layers * k // 6) for k in range(1, 7)})
    return {
        "name": model.name,
        "folder": str(model.path),
        "architecture": config.architecture,
        "num_layers": layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "eos_tokens": sorted(model.eos_tokens),
        "digest": model.digest,
        "native_exits": model.native_exits,
        "bfloat16_bytes_by_depth": {depth: weight_bytes(config, depth, 2) for depth in depths},
        "exits": [_exit(exit_file) for _, exit_file in sorted(find_exits(model).items())],
    }


def _exit(exit_file: ExitFile) -> dict[str, Any]:
    metadata, shape = exit_file.metadata, exit_file.shape
    held_out = metadata.measured.get("held_out")
    return {
        "depth": metadata.depth,
        "kind": metadata.kind,
        "layers_run": metadata.layers_run,
        "elements": shape.elements,
        "file": str(exit_file.path),
        "agreement": held_out.agreement if held_out else None,
        "over_0.9": held_out.coverage.get("0.9") if held_out else None,
        "agreement_over_0.9": held_out.precision.get("0.9") if held_out else None,
        "ece": held_out.ece if held_out else None,
    }


def model_table(facts: dict[str, Any], entry: Entry | None) -> Group:
    """Return `describe`'s facts as tables."""
    shown = {}
    exits = Table("exit", "kind", "layers run", "agreement", "over 0.9", "of these agree", "ECE")
    for found in facts["exits"]:
        figures = (found[key] for key in ("agreement", "over_0.9", "agreement_over_0.9"))
        shares = ["not measured" if value is None else f"{value:.1%}" for value in figures]
        ece = "not measured" if found["ece"] is None else f"{found['ece']:.3f}"
        exits.add_row(str(found["depth"]), found["kind"], str(found["layers_run"]), *shares, ece)
    for key, value in facts.items():
        if key in ("exits", "repository"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k}: {v / 1e6:,.0f} MB" for k, v in value.items())  # noqa: PLW2901
        shown[key.replace("_", " ")] = str(value)
    if entry:
        shown |= entry_facts(entry, shape="num_layers" not in facts)
    tables = [facts_table(facts["name"], shown)]
    if facts["exits"]:
        tables.append(exits)
    if entry and entry.measured:
        tables.append(measured_table(entry.measured))
    return Group(*tables)
