"""Commits that are refused at the last moment, and those that are killed at any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helios_batch.data.publish import publish, revoke, sweep
from helios_batch.errors import CommitRefused
from tests.support.jobs import ROOT

CRASHPOINTS = ["publish.created", "publish.written", "publish.confirmed", "publish.linked"]


def write(file: Any) -> None:
    """Write a whole file."""
    file.write(b"whole")


def refuse() -> None:
    """Say no, as a lost lease does."""
    raise CommitRefused("the lease is lost", where="here", fix="nothing")


def test_what_confirm_refuses_is_not_published(tmp_path: Path) -> None:
    """The file gets no name, and leaves nothing behind."""
    with pytest.raises(CommitRefused):
        publish(tmp_path / "part", write, confirm=refuse)
    assert not list(tmp_path.rglob("part*"))


@pytest.mark.parametrize("replace", [False, True])
def test_a_commit_is_revoked_after_it_was_confirmed(tmp_path: Path, replace: bool) -> None:
    """Between yes and the name, taking the temporary file away still stops it."""
    with pytest.raises(CommitRefused, match="taken away"):
        publish(tmp_path / "part", write, replace=replace, confirm=lambda: revoke(tmp_path, "part"))
    assert not list(tmp_path.rglob("part*"))


def test_only_the_named_part_is_revoked(tmp_path: Path) -> None:
    """Another part's commit goes on."""
    assert publish(tmp_path / "part-1", write, confirm=lambda: revoke(tmp_path, "part-2"))


@pytest.mark.parametrize("point", CRASHPOINTS)
def test_a_kill_within_a_commit(tmp_path: Path, point: str) -> None:
    """The part is absent, or whole once it has its name; the debris can be swept."""
    code = (
        "import sys; from pathlib import Path; from helios_batch.data.publish import publish;"
        "publish(Path(sys.argv[1]), lambda file: file.write(b'whole'))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "part"],
        env=os.environ | {"HELIOS_CRASHPOINT": point, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -9
    assert (tmp_path / "part").exists() == (point == "publish.linked")
    assert len(list((tmp_path / "_tmp").iterdir())) == 1
    sweep(tmp_path)
    assert not list((tmp_path / "_tmp").iterdir())
    assert publish(tmp_path / "part", write) == (point != "publish.linked")
    assert (tmp_path / "part").read_bytes() == b"whole"
