"""What a spec's `auto` stands for on this machine: device, dtype, memory, threads."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import torch

from helios_batch.errors import ResourceError
from helios_batch.hardware import hardware_name
from helios_batch.spec import ResourceSpec

_SHARE_OF_FREE_MEMORY = 0.6


@dataclass(frozen=True)
class Resources:
    """What one engine uses; `memory` in bytes for weights, KV cache and activations."""

    device: torch.device
    dtype: torch.dtype
    memory: int
    threads: int
    max_batch: int


def resolve(spec: ResourceSpec) -> Resources:
    """Fill in what the spec leaves to the machine.

    Raises:
        ResourceError: the device is not there, or has less memory than asked for.
    """
    device = _device(spec.device)
    total = _total_memory(device)
    if spec.memory is not None and spec.memory > total:
        raise ResourceError(
            f"{spec.memory:,} bytes were asked for; {device} has {total:,}",
            where="resources.memory",
            fix=f"give at most {total // 2**20}MiB, less what other programs use",
        )
    dtype = {"auto": _best_dtype(device), "float32": torch.float32, "bfloat16": torch.bfloat16}
    return Resources(
        device=device,
        dtype=dtype[spec.dtype],
        memory=spec.memory or int(_free_memory(device) * _SHARE_OF_FREE_MEMORY),
        threads=spec.threads or len(os.sched_getaffinity(0)),
        max_batch=spec.max_batch or 256,
    )


def hardware_of(resources: Resources) -> str:
    """Return what the hardware is called that an engine computes on; see `hardware_name`."""
    on_gpu = resources.device.type == "cuda"
    gpu = torch.cuda.get_device_name(resources.device) if on_gpu else None
    return hardware_name(resources.threads, gpu)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if not name.startswith("cuda"):
        return torch.device(name)
    device = torch.device(name if ":" in name else "cuda:0")
    if device.index >= torch.cuda.device_count():
        raise ResourceError(
            f"there is no device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices",
            where="resources.device",
            fix="use auto or cpu, or install a CUDA build of torch and its driver",
        )
    return device


def _best_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Tell whether this CPU multiplies bfloat16 matrices in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _total_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
