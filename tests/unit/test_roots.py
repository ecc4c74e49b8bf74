"""What a spec from the queue can reach: nothing outside of the worker's roots."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.data.source import local_files, open_input
from helios_batch.errors import QueueUsageError, UsageError
from helios_batch.queue.roots import check_files, check_spec, is_inside
from helios_batch.queue.settings import QueueSettings
from helios_batch.spec_file import parse_spec
from tests.support.parquet import write_rows

NAMES = st.sampled_from(
    [
        *("..", ".", "", "in", "data", "data-evil", "link", "loop", "etc", "n" * 300),
        *("~", "~root", "~nobody-here", "$HOME", "%2e%2e", "%252e%252e", "file:", "a\\..\\b"),
        *("*", "**", "d*", "[dl]*", "lin?", "x[1]", "c[1]", "{a,b}", "\0", "\ud800"),
    ]
)
PATHS = st.lists(NAMES, max_size=6).map("/".join)
PREFIXES = st.sampled_from(["", "/", "file://", "file:///", "file://localhost/", "FILE:///", "./"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root `data`, a folder beside it that looks alike, and links from one to the other."""
    place = tmp_path_factory.mktemp("place")
    for name in ("data/in", "data/odd", "data/x[1]", "data-evil"):
        (place / name).mkdir(parents=True)
    write_rows(place / "data" / "in" / "a.parquet", 2)
    write_rows(place / "data-evil" / "b.parquet", 2)
    (place / "data" / "link").symlink_to(place / "data-evil")
    (place / "data" / "near").symlink_to(place / "data" / "in")
    (place / "data" / "odd" / "c[1]").symlink_to(place / "data-evil")
    (place / "data" / "loop").symlink_to(place / "data" / "loop")
    return place


def settings(place: Path, *roots: str) -> QueueSettings:
    given = roots or (str(place / "data"),)
    return QueueSettings("redis://", input_roots=given, output_roots=given)


def spec(input_path: str, output: str, model: str = "stub") -> Any:
    data = {"name": "x", "input": {"path": input_path}, "prompt": {"template": "x"}}
    data |= {"models": [model], "output": {"path": output}}
    return parse_spec(data, "here")


def allowed(place: Path, **paths: str) -> bool:
    """Whether the spec with these places passes; the others are inside."""
    inside = str(place / "data" / "in" / "a.parquet"), str(place / "data" / "out")
    given = dict(zip(("input_path", "output"), inside, strict=True)) | paths
    try:
        check_spec(spec(**given), settings(place))
    except UsageError:
        return False
    return True


@given(prefix=PREFIXES, path=PATHS)
def test_no_path_that_is_allowed_leads_outside(place: Path, prefix: str, path: str) -> None:
    """Of any path, by its own way of reading it, what is let through lies under the root."""
    root = (place / "data").resolve()
    for tried in (prefix + path, f"{prefix}{root}/{path}"):
        if is_inside(tried, settings(place).output_roots):
            real = Path(tried.removeprefix("file://")).expanduser()
            assert os.path.realpath(real).startswith((f"{root}/", str(root)))
            assert Path(os.path.realpath(real)).is_relative_to(root)


@given(prefix=PREFIXES, path=PATHS)
def test_no_input_that_is_allowed_reads_outside(place: Path, prefix: str, path: str) -> None:
    """The files of an input that passes are all under the root, links followed."""
    root = (place / "data").resolve()
    try:
        checked = spec(f"{prefix}{root}/{path}", str(root / "out"))
        check_spec(checked, settings(place))
    except UsageError:
        return
    for file in local_files(checked.input.path):
        assert Path(os.path.realpath(file)).is_relative_to(root)


@pytest.mark.parametrize(
    "path",
    [
        "data",  # holds a link that leads outside
        "data/*/*.parquet",
        "data/l*/*.parquet",
        "data/[l]ink/b.parquet",
        "data/link",
        "data/odd/c[1]",  # a folder's name, not a glob
        "data*",
        "data*/b.parquet",
        "data-evil/b.parquet",
        "data/../data-evil",
        "data/loop",
        "*/b.parquet",
    ],
)
def test_inputs_outside_are_refused(place: Path, path: str) -> None:
    """Look-alikes, links, and globs whose matches lead outside; as paths and as quoted URLs."""
    assert not allowed(place, input_path=str(place / path))
    assert not allowed(place, input_path=f"file://{place}/{path}")
    assert not allowed(place, input_path=f"file://{place}/{quote(path).replace('..', '%2e%2e')}")


@pytest.mark.parametrize("path", ["in", "in/*.parquet", "near", "*/a.parquet", "../data/in"])
def test_inputs_inside_are_let_through(place: Path, path: str) -> None:
    """Links and climbs that stay inside are fine; a glob is judged by what it matches."""
    inside = place / "other"
    if not inside.exists():
        inside.mkdir()
        write_rows(inside / "in" / "a.parquet", 2)
        (inside / "near").symlink_to(inside / "in")
    checked = spec(str(inside / path), str(inside / "out"))
    check_spec(checked, settings(place, str(inside), str(place / "data" / "in")))


@pytest.mark.parametrize("path", ["data-evil/out", "data/link/out", "data/../out", "data/loop/x"])
def test_outputs_outside_are_refused(place: Path, path: str) -> None:
    """An output that a link or a climb would take outside; a glob's signs mean nothing there."""
    assert not allowed(place, output=str(place / path))
    assert not allowed(place, output=f"file://{place}/{path}")


def test_a_refused_input_is_never_opened(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places are judged before any file is read."""
    opened: list[object] = []
    monkeypatch.setattr("pyarrow.parquet.read_metadata", opened.append)
    assert not allowed(place, input_path=str(place / "data"))
    assert opened == []


def test_models_are_read_inside_only(place: Path) -> None:
    """A model folder outside, one that is a link, and one whose weights are; names are names."""
    model = place / "data" / "model"
    model.mkdir(exist_ok=True)
    assert allowed(place, model=str(model))
    assert allowed(place, model="some/hub-id")
    (model / "model.safetensors").symlink_to(place / "data-evil" / "b.parquet")
    assert not allowed(place, model=str(model))
    for name in (str(place / "data-evil"), str(place / "data/link"), "~", "~nobody-here", "./\0"):
        assert not allowed(place, model=name)


def test_what_an_input_turned_out_to_be_is_checked_too(place: Path) -> None:
    """A link that came after the first look is seen at the second."""
    table = open_input(str(place / "data-evil"))
    with pytest.raises(QueueUsageError, match="outside"):
        check_files(table, settings(place))
    check_files(table, replace(settings(place), input_roots=(str(place),)))


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("s3://bucket/data", True),
        ("s3://bucket/data/x/*.parquet", True),
        ("s3://bucket/data-evil/x", False),
        ("s3://bucket/data/../x", False),
        ("s3://bucket/data/%2e%2e/x", False),
        ("s3://bucket/data/%252e%252e/x", False),
        ("s3://bucket/data/a%5c..%5c..%5cx", False),
        ("s3://bucket/data/x?endpoint_override=evil.example", False),
        ("s3://key:secret@bucket/data/x", False),
        ("s3://other/data", False),
        ("gs://bucket/data", False),
        ("s3://bucket/d*", False),
    ],
)
def test_urls(place: Path, url: str, inside: bool) -> None:
    """A URL must go on where a root ends: same store, host and query, no climbing."""
    try:
        checked = settings(place, "s3://bucket/data", str(place / "data"))
        check_spec(spec(url, str(place / "data/out")), checked)
        found = True
    except QueueUsageError:
        found = False
    assert inside == found
