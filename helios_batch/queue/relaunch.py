"""Starting this program again, as a process of its own."""

from __future__ import annotations

import sys


def own_command(*arguments: str) -> list[str]:
    """Return the command that runs the main module of this process with other arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec is not None and spec.name != "__main__" else "helios_batch.cli"
    return [sys.executable, "-m", module, *arguments]
