"""Which models were trained to be left at any layer: known by name, or declared in config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXITS_KEY = "helios_exits"
"""The key of config.json by which a folder says `every_layer`."""
# arXiv 2404.16710: stock Llama weights, trained with early-exit loss and layer dropout
LAYERSKIP = frozenset(
    f"facebook/layerskip-{name}"
    for name in (
        *("llama3.2-1B", "llama3-8B", "llama2-7B", "llama2-13B", "llama2-70B"),
        *("codellama-7B", "codellama-34B"),
    )
)


def has_native_exits(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a model may be left after any layer through its own final norm and head.

    Args:
        name: a pack, a hub id or a local folder, as `open_model` takes it.
        config: what its config.json holds.
    """
    return name in LAYERSKIP or config.get(EXITS_KEY) == "every_layer"
