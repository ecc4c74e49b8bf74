"""Fixtures of the tests that run the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.jobs import Run, command


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], cache: Path) -> Run:
    """The command line, in this process, with a cache of its own."""
    return lambda *arguments: command(monkeypatch, capfd, *arguments)
