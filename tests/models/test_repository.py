"""The model repository: what ships, what is read and refused, and what is recorded."""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from helios_batch.errors import ModelError
from helios_batch.models import exits
from helios_batch.models.exits.metadata import KEY, ExitMetadata
from helios_batch.models.packs import PACKS
from helios_batch.models.repository.entry import Entry, Measurement, Quality
from helios_batch.models.repository.files import load_repository, read_entries, user_repository
from helios_batch.models.repository.record import RECORDED, record

MEASURED: dict[str, Any] = {
    "task": "generate",
    "hardware": "A CPU, 2 threads",
    "dtype": "float32",
    "depth": 4,
    "tokens_per_second": 100,
    "measured_by": "a test",
    "date": datetime.date(2026, 1, 2),
}


def measured(**changes: Any) -> Measurement:
    """A valid measurement."""
    return Measurement.model_validate(MEASURED | changes)


def write(file: Path, *entries: dict[str, Any]) -> Path:
    """Write a repository's file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({"models": list(entries)}))
    return file


def test_what_ships(cache: Path) -> None:
    """Each pack has an entry of its depth; the exits' agreement is what their files say."""
    repository = load_repository()
    for name, pack in PACKS.items():
        entry = repository.find(name)
        assert entry is not None
        assert entry.num_layers == pack.num_layers
    smollm2 = repository.find("smollm2-135m")
    assert smollm2 is not None
    assert smollm2.fastest == max(smollm2.measured, key=lambda m: m.tokens_per_second or 0)
    stated = {
        found.depth: found.quality.value
        for found in smollm2.measured
        if found.quality and found.measured_by == "make exits"
    }
    agreements = {}
    for file in (Path(exits.__file__).parent / "shipped" / "smollm2-135m").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata = ExitMetadata.from_json(opened.metadata()[KEY])
        agreements[metadata.depth] = round(metadata.measured["held_out"].agreement, 3)
    assert stated == agreements
    assert smollm2.exits == tuple(sorted(stated))


def test_the_users_own_updates_what_ships(cache: Path, tmp_path: Path) -> None:
    """Files of the user's folder add and correct; a repository that is named stands instead."""
    shape = {"family": "llama", "tokenizer": "own", "num_layers": 8, "exits": "every_layer"}
    write(cache / "models" / "a.yaml", {"name": "some/model", **shape, "measured": [MEASURED]})
    later = MEASURED | {"tokens_per_second": 90, "date": datetime.date(2026, 1, 3)}
    older = MEASURED | {"tokens_per_second": 200, "date": datetime.date(2026, 1, 1)}
    write(cache / "models" / "b.yml", {"name": "some/model", "measured": [later]})
    write(cache / "models" / "c.yaml", {"name": "some/model", "exits": [2], "measured": [older]})
    write(cache / "models" / ".hidden.yaml", {"name": "hidden"})
    (cache / "models" / "notes.txt").write_text("no YAML: [")
    found = load_repository().find("some/model")
    assert found == Entry(
        name="some/model",
        family="llama",
        tokenizer="own",
        num_layers=8,
        exits=(2,),
        measured=(Measurement.model_validate(later),),
    )
    assert load_repository().find("hidden") is None
    named = write(tmp_path / "other.yaml", {"name": "smollm2-135m", "family": "corrected"})
    other = load_repository(named)
    assert other.find("some/model") is None
    smollm2 = other.find("smollm2-135m")
    assert smollm2 is not None
    assert (smollm2.family, smollm2.num_layers) == ("corrected", 30)
    assert load_repository(cache / "models").find("some/model") == found


def test_another_model_of_the_same_name(cache: Path) -> None:
    """Where the number of layers has changed, nothing of the older entry stays."""
    write(cache / "models" / "a.yaml", {"name": "m", "num_layers": 8, "measured": [MEASURED]})
    write(cache / "models" / "b.yaml", {"name": "m", "num_layers": 2})
    assert load_repository().find("m") == Entry(name="m", num_layers=2)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "m", "familly": "llama"}, "familly: unknown key"),
        ({"family": "llama"}, "name: this key is required"),
        ({"name": "m", "num_layers": "12"}, "num_layers: .*found '12'"),
        ({"name": "m", "exits": "all"}, "exits: write a list of ascending depths, or every_layer"),
        ({"name": "m", "exits": [4, 2]}, "exits: write a list of ascending depths"),
        ({"name": "m", "exits": [True, 2]}, "exits: write a list of ascending depths"),
        ({"name": "m", "num_layers": 4, "exits": [4]}, "lies before the last of 4 layers"),
        ({"name": "m", "num_layers": 3, "measured": [MEASURED]}, "measured at depth 4 of 3 layers"),
        ({"name": "m", "measured": [MEASURED, MEASURED]}, "measured twice: generate, A CPU"),
        ({"name": "m", "measured": [MEASURED | {"dtype": "half"}]}, r"measured\.0\.dtype: .*half"),
        ({"name": "m", "measured": [MEASURED | {"speed": 1}]}, r"measured\.0\.speed: unknown key"),
        ({"name": "m", "measured": [MEASURED | {"date": "today"}]}, r"measured\.0\.date: .*today"),
        ({"name": "m", "measured": [MEASURED | {"tokens_per_second": None}]}, "nothing was measu"),
        ({"name": "m", "measured": [MEASURED | {"tokens_per_second": float("inf")}]}, "finite"),
        ({"name": "m", "measured": [MEASURED | {"memory_bytes": 5}]}, "memory_bytes and batch"),
        (
            {"name": "m", "measured": [MEASURED | {"quality": {"metric": "exact", "value": 2}}]},
            r"measured\.0\.quality\.against: this key is required",
        ),
        ("m", r"entry 2 \(not a mapping\)"),
    ],
)
def test_malformed_entries_are_refused(tmp_path: Path, entry: Any, message: str) -> None:
    """The message names the file, the entry and the key."""
    file = write(tmp_path / "own.yaml", {"name": "fine"}, entry)
    with pytest.raises(ModelError, match=message) as caught:
        load_repository(file)
    assert caught.value.where == str(file)
    assert "entry 2 (" in caught.value.what


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has one key, models"),
        ("models: {}", "has one key, models"),
        ("models: []\nmore: 1", "has one key, models"),
        ("models: [", "can't be read"),
        ("models: [{name: m, name: n}]", "key 'name' is given twice"),
        ("models: [{name: m}, {name: m}]", "entry 2: m is there twice"),
        ("models: [!!python/object/apply:os.getcwd []]", "could not determine a constructor"),
        ("models: [{name: m, date: 2026-02-30}]", "can't be read"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """YAML that is none, holds code, or gives a thing twice."""
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        load_repository(file)
    assert caught.value.where == str(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ModelError, match="can't be read"):
        load_repository(file)
    with pytest.raises(ModelError, match="no such model repository"):
        load_repository(tmp_path / "absent")


def test_an_entry_that_does_not_go_with_what_is_known(tmp_path: Path, cache: Path) -> None:
    """A depth that is beyond the layers which another file states is refused."""
    deep = MEASURED | {"depth": 31}
    file = write(tmp_path / "own.yaml", {"name": "smollm2-135m", "measured": [deep]})
    with pytest.raises(ModelError, match=r"smollm2-135m does not go with .* depth 31 of 30 layers"):
        load_repository(file)


def test_recording(cache: Path, in_folder: Path) -> None:
    """What is recorded is found again, replaces what was measured before, and leaves the rest."""
    assert load_repository().find("out/tiny") is None
    (in_folder / "out" / "tiny").mkdir(parents=True)
    first, deeper = measured(), measured(depth=6)
    record(Entry(name="out/tiny", family="llama", num_layers=8, measured=(first, deeper)))
    again = measured(tokens_per_second=50, memory_bytes=7, batch=2)
    record(Entry(name="out/tiny", measured=(again,)))
    record(Entry(name="smollm2-135m", measured=(first,)))
    found = load_repository().find("out/tiny")
    assert found is not None
    assert (found.family, found.num_layers) == ("llama", 8)
    assert found.measured == (again, deeper)
    # a folder is known by its whole path, so that another folder's out/tiny is not taken for it
    assert found.name == str(in_folder / "out" / "tiny")
    pack = load_repository().find("smollm2-135m")
    assert pack is not None
    assert first in pack.measured
    assert len(pack.measured) > 1, "what ships is known beside it"
    assert [path.name for path in user_repository().iterdir() if path.name[0] != "."] == [RECORDED]


def test_several_record_at_once(cache: Path) -> None:
    """None of what is recorded at the same time is lost."""
    with ThreadPoolExecutor(8) as pool:
        entries = [Entry(name=f"m{n % 3}", measured=(measured(depth=n + 1),)) for n in range(24)]
        list(pool.map(record, entries))
    found = read_entries(user_repository() / RECORDED)
    assert sorted((entry.name, one.depth) for entry in found for one in entry.measured) == sorted(
        (f"m{n % 3}", n + 1) for n in range(24)
    )


def test_what_can_not_be_recorded(cache: Path) -> None:
    """A file in the folder's place, and a damaged file, are errors that leave it as it is."""
    cache.mkdir()
    own = write(cache / "models", {"name": "m", "family": "llama"})
    before = own.read_bytes()
    assert load_repository().find("m") is not None
    with pytest.raises(ModelError, match="can't be recorded") as caught:
        record(Entry(name="m", measured=(measured(),)))
    assert "HELIOS_CACHE" in caught.value.fix
    assert own.read_bytes() == before
    own.unlink()
    own.mkdir()
    (own / RECORDED).write_text("models: 5")
    with pytest.raises(ModelError, match="has one key, models"):
        record(Entry(name="m", measured=(measured(),)))
    assert (own / RECORDED).read_text() == "models: 5"


words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20
)
rates = st.none() | st.floats(1e-6, 1e12)
qualities = st.builds(
    Quality, metric=words, against=st.sampled_from(["answers", "full depth"]), value=st.floats(0, 1)
)


@given(task=words, hardware=words, command=words, rate=rates, quality=qualities, date=st.dates())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_measurement_survives_the_file(
    cache: Path,
    task: str,
    hardware: str,
    command: str,
    rate: float | None,
    quality: Quality,
    date: datetime.date,
) -> None:
    """Whatever is recorded is read as it was, whatever YAML would make of its text."""
    made = Measurement(
        task=task,
        hardware=hardware,
        dtype="bfloat16",
        depth=1,
        rows_per_second=rate,
        quality=quality,
        measured_by=command,
        date=date,
    )
    record(Entry(name="m", num_layers=2, measured=(made,)))
    file = user_repository() / RECORDED
    assert read_entries(file) == [Entry(name="m", num_layers=2, measured=(made,))]
    file.unlink()
