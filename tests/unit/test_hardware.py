"""What hardware is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from helios_batch import hardware


def test_a_cpu_is_its_model_and_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The model as the system tells it, or the architecture; a GPU's name alone."""
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: A  CPU @ 2 GHz \nflags\t: x\nmodel name\t: B\n")
    monkeypatch.setattr(hardware, "_CPU_INFO", told)
    assert hardware.hardware_name(2) == "A CPU @ 2 GHz, 2 threads"
    assert hardware.hardware_name(1) == "A CPU @ 2 GHz, 1 thread"
    assert hardware.hardware_name(2, "A GPU") == "A GPU"
    monkeypatch.setattr(hardware.platform, "processor", lambda: "")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "riscv64")
    for text in ("model name\t:\nflags\t: x\n", ""):
        told.write_text(text)
        assert hardware.hardware_name(4) == "riscv64, 4 threads"
    monkeypatch.setattr(hardware, "_CPU_INFO", tmp_path / "absent")
    assert hardware.cpu_model() == "riscv64"
