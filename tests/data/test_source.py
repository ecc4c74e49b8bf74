"""Finding and reading the input."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_batch.data import source
from helios_batch.data.reader import RowReader
from helios_batch.data.source import InputTable, has_files, open_input
from helios_batch.errors import InputError, ReadError
from tests.support.parquet import write_rows


@pytest.fixture
def folder(in_folder: Path) -> Path:
    """Files in folders, with others beside them that are no input."""
    write_rows(in_folder / "in" / "b.parquet", 5)
    write_rows(in_folder / "in" / "a.parquet", 7)
    write_rows(in_folder / "in" / "deep" / "c.parquet", 2)
    write_rows(in_folder / "in" / "_hidden" / "d.parquet", 1)
    write_rows(in_folder / "in" / ".e.parquet", 1)
    (in_folder / "in" / "notes.txt").write_text("no input")
    return in_folder


def names(path: str) -> list[str]:
    return [file.name for file in open_input(path).files]


def test_files_folders_and_globs(folder: Path) -> None:
    """A path may be a file, a folder or a glob; the order is that of the paths."""
    everything = ["in/a.parquet", "in/b.parquet", "in/deep/c.parquet"]
    assert names("in/a.parquet") == ["in/a.parquet"]
    assert names("in") == names("in/") == everything
    assert names("in/*.parquet") == ["in/a.parquet", "in/b.parquet"]
    assert names("in/[b-z].parquet") == ["in/b.parquet"]
    assert names("in/**/*.parquet") == everything
    assert names("*/?.parquet") == ["in/a.parquet", "in/b.parquet"]
    absolute = str(folder / "in")
    assert names(absolute) == [f"{folder}/{name}" for name in everything]
    assert names(f"{absolute}/*.parquet") == [f"{folder}/{name}" for name in everything[:2]]


def test_lists_of_paths(folder: Path) -> None:
    """Several paths are one table in the order given; what two of them reach is an error."""
    files = open_input("in/b.parquet", "in/a.parquet").files
    assert [file.name for file in files] == ["in/b.parquet", "in/a.parquet"]
    for other in ("in/a.parquet", "in/*.parquet", "in/deep/../a.parquet", f"{folder}/in/a.parquet"):
        with pytest.raises(InputError, match="reached twice"):
            open_input("in/a.parquet", other)
    with pytest.raises(InputError, match="no Parquet file") as caught:
        open_input("in/a.parquet", "absent")
    assert caught.value.where == "absent"
    assert open_input("in/*.parquet", "in/deep").folders == (Path("in/deep"),)
    assert has_files("absent", "in")
    assert not has_files("absent", "in/*.csv")


def test_urls(folder: Path) -> None:
    """file:// URLs name the same files; other schemes come from pyarrow.fs."""
    assert names(f"file://{folder}/in/a.parquet") == [f"{folder}/in/a.parquet"]
    assert names(f"file://{folder}/in/*.parquet") == [
        f"{folder}/in/a.parquet",
        f"{folder}/in/b.parquet",
    ]
    with pytest.raises(InputError, match="can't open the input's filesystem"):
        open_input("ftp://host/in.parquet")


@pytest.mark.parametrize("path", ["absent.parquet", "absent/", "in/*.csv", "in/notes.txt"])
def test_nothing_there(folder: Path, path: str) -> None:
    """A path without Parquet files is an error that names it."""
    with pytest.raises(InputError) as caught:
        open_input(path)
    assert path in str(caught.value)
    assert caught.value.fix


def test_truncated_files(folder: Path) -> None:
    """A file cut short is refused before anything runs."""
    whole = Path("in/a.parquet").read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        Path("in/a.parquet").write_bytes(whole[:size])
        with pytest.raises(InputError, match="not a readable Parquet file"):
            open_input("in")


def test_globs_look_no_further_than_they_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A glob without folders in it lists one folder; others may be huge or unreadable."""
    listed: list[bool] = []
    original = source.fs.FileSelector

    def selector(base: str, **options: bool) -> object:
        listed.append(options["recursive"])
        return original(base, **options)

    monkeypatch.setattr(source.fs, "FileSelector", selector)
    names("in/*.parquet")
    names("in/**/*.parquet")
    assert listed == [False, True]


def test_urls_are_decoded_and_keep_no_secrets(folder: Path) -> None:
    """%20 in a file URL is a space; user, password and query of a URL are in no message."""
    write_rows(folder / "with space" / "a.parquet", 1)
    assert names(f"file://{folder}/with%20space/a.parquet") == [f"{folder}/with space/a.parquet"]
    with pytest.raises(InputError) as caught:
        open_input("ftp://me:secret@host/in.parquet?token=secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match=r"can't look up|no Parquet file"):
        open_input("in\0valid")


def test_schemas_must_agree(folder: Path) -> None:
    """Files of another schema are named, with the column that differs."""
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), "in/b.parquet")
    with pytest.raises(InputError, match="'id' is string here and int64 there"):
        open_input("in")
    pq.write_table(pa.table({"id": [1]}), "in/b.parquet")
    with pytest.raises(InputError, match="'text' is absent here"):
        open_input("in")


def test_missing_columns_are_listed(folder: Path) -> None:
    """A column that is not there is named together with those that are."""
    with pytest.raises(InputError, match="column 'nope' is not in the input") as caught:
        open_input("in").require(("id", "nope"), "input.columns")
    assert "id, text" in str(caught.value)


def test_rows_know_their_files(folder: Path) -> None:
    """Row ids are (file, row in file) across file borders."""
    table = open_input("in")
    assert table.rows == 14
    ids = table.ids(0, 14)
    assert ids[6:8] == [("in/a.parquet", 6), ("in/b.parquet", 0)]
    assert ids[-1] == ("in/deep/c.parquet", 1)
    assert table.ids(5, 5) == []


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> InputTable:
    """300 rows in files and row groups of odd sizes, one file empty."""
    folder = tmp_path_factory.mktemp("many")
    first = 0
    for i, (count, group) in enumerate([(100, 33), (1, 1), (0, 1), (150, 150), (49, 7)]):
        write_rows(folder / f"{i}.parquet", count, first=first, row_group_size=group)
        first += count
    return open_input(str(folder))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=6))
def test_any_ranges_in_any_order(many: InputTable, ranges: list[tuple[int, int]]) -> None:
    """A reader gives exactly the rows asked for, whatever it read before."""
    reader = RowReader(many, ("text", "id"))
    for one, other in ranges:
        start, stop = sorted((one, other))
        rows = reader.read(start, stop)
        assert rows.column("id").to_pylist() == list(range(start, stop))
        assert rows.column_names == ["text", "id"]


def test_consecutive_ranges_are_one_pass(many: InputTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading shard after shard opens each row group once, however small the shards."""
    opened: list[object] = []
    original = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, **options: opened.append(options) or original(self, **options),
    )
    reader = RowReader(many, ("id",))
    for start in range(0, 300, 5):
        reader.read(start, start + 5)
    groups = sum(len(file.row_group_rows) for file in many.files)
    assert len(opened) <= groups
    assert all(options["columns"] == ["id"] for options in opened)  # type: ignore[index]


def test_a_file_that_vanishes_is_a_read_error(in_folder: Path) -> None:
    """Input lost or damaged after the job began is reported, not read as empty."""
    write_rows(in_folder / "a.parquet", 10)
    reader = RowReader(open_input("a.parquet"), ("id",))
    (in_folder / "a.parquet").unlink()
    with pytest.raises(ReadError, match="can't be read"):
        reader.read(0, 10)


def test_fingerprint_is_of_the_content(in_folder: Path) -> None:
    """A copy has the same digest under another time; one changed value has another."""
    write_rows(in_folder / "a.parquet", 10)
    write_rows(in_folder / "b.parquet", 10)
    write_rows(in_folder / "c.parquet", 10, first=1)
    digests = [open_input(f"{name}.parquet").files[0].content_digest() for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
