"""What the hardware is called that something was measured on (no torch)."""

from __future__ import annotations

import platform
import re
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def hardware_name(threads: int, gpu: str | None = None) -> str:
    """Return a name such as `AMD EPYC 9B45, 2 threads`, or the GPU's.

    Measurements under one name are taken to compare. On a CPU the threads count as much as the
    model does, so they are part of the name.

    Args:
        threads: that the engine computes with.
        gpu: the name of the CUDA device, if it computes on one.
    """
    if gpu is not None:
        return " ".join(gpu.split())
    return f"{cpu_model()}, {threads} {'thread' if threads == 1 else 'threads'}"


def cpu_model() -> str:
    """Return the model name of this machine's CPU, or its architecture where none is told."""
    try:
        told = re.search(r"^model name\s*:(.*)$", _CPU_INFO.read_text(errors="replace"), re.M)
    except OSError:  # not Linux
        told = None
    name = " ".join(told[1].split()) if told else ""
    return name or platform.processor() or platform.machine() or "CPU"
