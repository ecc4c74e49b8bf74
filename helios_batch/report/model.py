"""The output of `models show`: a model's shape, its weights by depth, and its exits."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from helios_batch.engine.memory import weight_bytes
from helios_batch.models.exits.file import ExitFile, find_exits
from helios_batch.models.folder import ModelFolder
from helios_batch.report.facts import facts_table


def describe(model: ModelFolder) -> dict[str, Any]:
    """Return a model's shape, its weights in bfloat16 bytes by depth, and its own exits.

    Raises:
        ModelError: an exit beside the model is damaged, or of another model.
    """
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


def model_table(facts: dict[str, Any]) -> Group:
    """Return `describe`'s facts as tables."""
    shown = {}
    exits = Table("exit", "kind", "layers run", "agreement", "over 0.9", "of these agree", "ECE")
    for found in facts["exits"]:
        figures = (found[key] for key in ("agreement", "over_0.9", "agreement_over_0.9"))
        shares = ["not measured" if value is None else f"{value:.1%}" for value in figures]
        ece = "not measured" if found["ece"] is None else f"{found['ece']:.3f}"
        exits.add_row(str(found["depth"]), found["kind"], str(found["layers_run"]), *shares, ece)
    for key, value in facts.items():
        if key == "exits":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k}: {v / 1e6:,.0f} MB" for k, v in value.items())  # noqa: PLW2901
        shown[key.replace("_", " ")] = str(value)
    table = facts_table(facts["name"], shown)
    return Group(table, exits) if facts["exits"] else Group(table)
