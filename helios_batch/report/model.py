"""The output of `models show`."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from helios_batch.engine.memory import weight_bytes
from helios_batch.models.folder import ModelFolder
from helios_batch.report.facts import facts_table


def describe(model: ModelFolder) -> dict[str, Any]:
    """Return a model's shape, and its weights in bfloat16 bytes by depth."""
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
        "bfloat16_bytes_by_depth": {depth: weight_bytes(config, depth, 2) for depth in depths},
    }


def model_table(facts: dict[str, Any]) -> Table:
    """Return `describe`'s facts as a table."""
    shown = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}: {v / 1e6:,.0f} MB" for k, v in value.items())  # noqa: PLW2901
        shown[key.replace("_", " ")] = str(value)
    return facts_table(facts["name"], shown)
