"""What a step can cost at the least on a chip, from its data sheet (no torch)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """An accelerator; all rates are peaks, which nothing reaches.

    Args:
        name: of the product.
        memory: bytes.
        bandwidth: bytes a second from its own memory.
        flops: dense bfloat16 operations a second.
        link: bytes a second from the host, one way.
    """

    name: str
    memory: int
    bandwidth: float
    flops: float
    link: float


A100_40GB = Chip("A100-40GB", 40 * 10**9, 1.555e12, 312e12, 32e9)
"""NVIDIA A100 Tensor Core GPU data sheet, 2021: 40 GB HBM2 at 1,555 GB/s, 312 TFLOP/s; PCIe 4.0
x16, 64 GB/s both ways together."""
H100 = Chip("H100-80GB", 80 * 10**9, 3.35e12, 989.4e12, 64e9)
"""NVIDIA H100 Tensor Core GPU data sheet, SXM: 80 GB HBM3 at 3.35 TB/s, 1,979 TFLOP/s with
sparsity, half of it dense; PCIe 5.0 x16, 128 GB/s both ways together."""
