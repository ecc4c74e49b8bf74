"""HELIOS's loop from the spec to the parts, on the models that come with the package."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.process.conftest import Run
from tests.process.test_faults import wait_for_parts
from tests.support.engines import watch_for_doubles
from tests.support.jobs import parts, started
from tests.support.parquet import write_rows
from tests.support.tiny import edit_config, make_model

NANO = ("helios-nano-docs", "helios-nano-code")
ROWS = 40
POLICY = {"type": "helios", "threshold": 0.05, "requests": 3, "reprofile": 1000}


@pytest.fixture(autouse=True)
def _own_cache(cache: Path) -> None:
    """Tables of other tests are not known here."""


def spec(folder: Path, out: str = "out", **changes: Any) -> Path:
    """Write a job over both models, in shards of 16 rows."""
    write_rows(folder / "in.parquet", ROWS)
    data = {
        "name": "loop",
        "input": {"path": str(folder / "in.parquet")},
        "prompt": {"template": "The function {{ text }}"},
        "sampling": {"max_tokens": 8},
        "models": list(NANO),
        "depth": "auto",
        "policy": POLICY,
        "output": {"path": str(folder / out), "rows_per_shard": 16},
        "resources": {"memory": "96MiB", "dtype": "float32", "max_batch": 8},
    } | changes
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def rows(folder: Path, out: str = "out") -> list[dict[str, Any]]:
    parts = sorted((folder / out).glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def record(folder: Path, out: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / out / "_job.json").read_text())
    return found


def test_a_job_over_two_models(cli: Run, tmp_path: Path) -> None:
    """Planned, run and told: every row once, where it left, and what was chosen from what."""
    path = spec(tmp_path)
    planned = cli("plan", path)
    assert planned.status == 0, planned.err
    said = " ".join(planned.out.replace("│", " ").split())
    assert "policy helios chooses by throughput" in said
    assert "helios-nano-code at 3 or 6 or 9 or 12 layers" in said
    ended = cli("run", path)
    assert ended.status == 0, ended.err
    found = rows(tmp_path)
    assert [row["row_id"]["row"] for row in found] == list(range(ROWS))
    assert all(row["exit"]["breaches"] is not None for row in found if row["exit"])
    assert {row["exit"]["model"] for row in found if row["exit"]} <= set(NANO)
    job = record(tmp_path)
    assert (job["policy"]["decided_by"], job["policy"]["models"]) == ("helios", list(NANO))
    assert job["totals"]["moves"]["choose"] == 1
    assert job["totals"]["seconds"]["profile"] > 0
    assert "moves" in ended.out
    shown = cli("models", "show", found[-1]["exit"]["model"], "--json")
    assert '"task": "loop"' in shown.out, "what was measured is in the model repository"
    table = json.loads((tmp_path / "out" / "_pht.json").read_text())
    assert {len(model["requests"]) for model in table["models"].values()} == {3}


def test_the_table_serves_the_next_job(cli: Run, tmp_path: Path) -> None:
    """Another job of the same kind does not profile again; one with another threshold does."""
    assert cli("run", spec(tmp_path, "first")).status == 0
    assert cli("run", spec(tmp_path, "second")).status == 0
    assert "profile" not in record(tmp_path, "second")["totals"]["seconds"]
    other = spec(tmp_path, "third", policy=POLICY | {"threshold": 0.06})
    assert cli("run", other).status == 0
    assert record(tmp_path, "third")["totals"]["seconds"]["profile"] > 0


def test_one_model_and_another_objective(cli: Run, tmp_path: Path) -> None:
    """Where all depths are sure enough, memory is spared at the shallowest one."""
    path = spec(tmp_path, models=[NANO[0]], policy=None, objective="memory")
    data = yaml.safe_load(path.read_text())
    data["policy"] = POLICY | {"type": "helios-single", "threshold": 0.0}
    path.write_text(yaml.safe_dump(data))
    ended = cli("run", path)
    assert ended.status == 0, ended.err
    profiled = [row for row in rows(tmp_path) if row["exit"]["layers_loaded"] == 12]
    others = [row for row in rows(tmp_path) if row["exit"]["layers_loaded"] == 3]
    assert (len(profiled), len(others)) == (3, ROWS - 3)


def test_a_run_goes_on_after_its_finished_shards(cli: Run, tmp_path: Path) -> None:
    """A shard that is there is not run again, and the table is that of the folder."""
    assert cli("run", spec(tmp_path)).status == 0
    whole = rows(tmp_path)
    (tmp_path / "out" / "part-00001.parquet").unlink()
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert cli("run", spec(tmp_path)).status == 0
    again = rows(tmp_path)
    assert [row["row_id"] for row in again] == [row["row_id"] for row in whole]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources": {"memory": "1MiB"}}, "hold no depth of helios-nano-docs and"),
        ({"policy": POLICY | {"threshold": 1.5}}, "policy.threshold"),
        ({"policy": POLICY | {"limit": 100}}, "write a limit under the window"),
        ({"models": ["helios-nano-docs", "helios-nano-docs"]}, "name each model once"),
        ({"quality": {"min_agreement": 0.9}, "policy": None}, "metric exact or rouge_l"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_chosen_from_is_refused(
    cli: Run, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Before the first row, with what is wrong."""
    ended = cli("run", spec(tmp_path, **changes))
    assert ended.status == 2
    assert message in ended.err
    assert not (tmp_path / "out").exists()


def test_models_without_exits_are_refused(cli: Run, tmp_path: Path) -> None:
    """One of several may lack them: it runs at full depth; all of them may not."""
    make_model(tmp_path / "plain", "llama3")
    make_model(tmp_path / "other", "llama3", seed=1)
    both = [str(tmp_path / "plain"), str(tmp_path / "other")]
    ended = cli("run", spec(tmp_path, models=both))
    assert (ended.status, "have no exits to choose from" in ended.err) == (2, True)
    edit_config(tmp_path / "other", helios_exits="every_layer")
    assert cli("run", spec(tmp_path, models=both)).status == 0


def test_a_promise_over_two_models(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages of both models are looked at, one in memory at a time; full depth of the first is what
    rows fall back to."""
    counts = watch_for_doubles(monkeypatch)
    task = {"type": "label", "choices": [" yes", " no"]}
    quality = {"min_agreement": 0.6, "confidence": 0.7, "calibration_rows": 20}
    write = {"policy": None, "quality": quality, "task": task, "sampling": {}}
    ended = cli("run", spec(tmp_path, **write))
    assert ended.status == 0, ended.err
    policy = record(tmp_path)["policy"]
    assert (policy["models"][-1], policy["depths"][-1]) == (NANO[0], 12)
    assert {stage["model"] for stage in policy["by_stage"]} == set(NANO)
    assert NANO[1] in (tmp_path / "out" / "_policy.json").read_text()
    assert len(counts) > 6
    assert not any(counts)
    assert [row["row_id"]["row"] for row in rows(tmp_path)] == list(range(ROWS))


def test_a_promise_needs_more_than_a_row(cli: Run, tmp_path: Path) -> None:
    """On a single row nothing can be shown: it runs at full depth of the first, and says why."""
    quality = {"min_agreement": 0.6, "metric": "exact"}
    path = spec(tmp_path, policy=None, quality=quality)
    write_rows(tmp_path / "in.parquet", 1)
    ended = cli("run", path)
    assert ended.status == 0, ended.err
    [row] = rows(tmp_path)
    assert (row["exit"]["model"], row["exit"]["layers_loaded"]) == (NANO[0], 12)
    policy = record(tmp_path)["policy"]
    assert policy["depths"] == [12]
    assert "row" in policy["reason"]


def small_and_large(folder: Path) -> list[str]:
    """Return two models that can be left at any layer, one of them with a larger context."""
    names = []
    for name, context in (("small", 64), ("large", 2048)):
        make_model(folder / name, "llama3")
        edit_config(folder / name, helios_exits="every_layer", max_position_embeddings=context)
        names.append(str(folder / name))
    return names


@pytest.mark.parametrize(("memory", "left_out"), [("40MiB", True), ("64MiB", False)])
def test_what_memory_does_not_hold_is_left_out(
    cli: Run, tmp_path: Path, memory: str, left_out: bool
) -> None:
    """`plan` says which candidates that are, and the others run."""
    small, large = small_and_large(tmp_path)
    resources = {"memory": memory, "dtype": "float32", "max_batch": 8}
    path = spec(tmp_path, models=[large, small], resources=resources)
    plan = json.loads(cli("plan", path, "--json").out)
    assert (f"resources.memory does not hold {large}" in plan["contract"]) == left_out
    ended = cli("run", path)
    assert ended.status == 0, ended.err
    assert [row["row_id"]["row"] for row in rows(tmp_path)] == list(range(ROWS))
    table = json.loads((tmp_path / "out" / "_pht.json").read_text())
    assert set(table["models"]) == ({small} if left_out else {small, large})


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("promised", [False, True])
def test_chats_need_templates_of_all(
    cli: Run, tmp_path: Path, command: str, promised: bool
) -> None:
    """A second candidate without a chat template is an error before the first row."""
    names = small_and_large(tmp_path)
    (tmp_path / "large" / "chat_template.jinja").unlink()
    prompt = {"template": "{{ text }}", "system": "You are a fox."}
    changes: dict[str, Any] = {"models": names, "prompt": prompt}
    if promised:
        changes |= {"policy": None, "quality": {"min_agreement": 0.6, "metric": "exact"}}
    ended = cli(command, spec(tmp_path, **changes))
    assert ended.status == 2
    assert f"model '{names[1]}' has no chat template" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on(cli: Run, tmp_path: Path) -> None:
    """Killed after a part and run again, each row is there once, by the table of the folder."""
    path = spec(tmp_path, output={"path": str(tmp_path / "out"), "rows_per_shard": 2})
    with started("run", path) as process:
        wait_for_parts(process, tmp_path, 1)
        process.kill()
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    done = {part: part.stat().st_mtime_ns for part in parts(tmp_path)}
    table = json.loads((tmp_path / "out" / "_pht.json").read_text())
    shutil.rmtree(os.environ["HELIOS_CACHE"])
    ended = cli("run", path)
    assert ended.status == 0, ended.err
    assert [row["row_id"]["row"] for row in rows(tmp_path)] == list(range(ROWS))
    assert {part: part.stat().st_mtime_ns for part in done} == done
    again = json.loads((tmp_path / "out" / "_pht.json").read_text())
    for name in NANO:
        assert again["models"][name]["requests"] == table["models"][name]["requests"]


def test_a_row_too_long_for_one_candidate_has_a_result(cli: Run, tmp_path: Path) -> None:
    """It runs, or has an error, by the candidate that it ran on; the others are not touched."""
    names = small_and_large(tmp_path)
    path = spec(tmp_path, models=names, prompt={"column": "text"})
    texts = ["the quick brown fox"] * 20
    texts[::5] = ["abcdefgh " * 20] * 4
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    ended = cli("run", path)
    assert ended.status == 0, ended.err
    found = rows(tmp_path)
    assert [row["row_id"]["row"] for row in found] == list(range(20))
    codes = {row["error"]["code"] for row in found if row["error"]}
    assert codes <= {"prompt_too_long"}
    assert all(row["error"] is None for row in found if row["row_id"]["row"] % 5)
