"""`policy: ee` from the spec to the parts, and on a worker's warm engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helios_batch.job import Job, prepare
from helios_batch.models.exits.file import write_exit
from helios_batch.queue.engines import WarmEngine
from helios_batch.spec_file import load_spec
from helios_batch.supervision import ALONE
from tests.support.exits import add_exit, metadata, random_exit
from tests.support.jobs import Run, rows, write_spec
from tests.support.parquet import write_rows
from tests.support.tiny import edit_config

EE = {"type": "ee", "threshold": 0.05}


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that may be left at any layer."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    edit_config(folder, helios_exits="every_layer")
    write_rows(tmp_path / "in.parquet", 11)
    return folder


def early(folder: Path, model: Path, **changes: Any) -> Path:
    resources = {"dtype": "float32", "memory": "80MiB", "threads": 1}
    given = {"depth": "auto", "policy": EE, "resources": resources} | changes
    return write_spec(folder, model, **given)


def test_tokens_leave_at_different_layers(cli: Run, model: Path, tmp_path: Path) -> None:
    """The output says where each token left, and the records and tables say what the policy was; in
    batches and alone the rows are the same."""
    found = []
    for batch in (4, 1):
        resources = {"dtype": "float32", "memory": "80MiB", "threads": 1, "max_batch": batch}
        ended = cli("run", early(tmp_path, model, resources=resources))
        assert ended.status == 0, ended.err
        assert "the first of the model's that is sure of it" in " ".join(
            ended.out.replace("│", " ").split()
        )
        found.append(rows(tmp_path))
        job = json.loads((tmp_path / "out" / "_job.json").read_text())
        shutil.rmtree(tmp_path / "out")
    assert found[0] == found[1]
    layers = [layer for row in found[0] for layer in row["exit"]["token_layers"]]
    assert {1, 4} < set(layers) <= {1, 2, 3, 4}
    assert all(row["exit"]["layers_loaded"] == row["exit"]["token_layers"][-1] for row in found[0])
    for row in found[0]:
        told = zip(row["exit"]["token_layers"], row["exit"]["token_confidences"], strict=True)
        assert all(layer == 4 or sure >= 0.05 for layer, sure in told)
        assert row["exit"]["breaches"] is None
    assert job["policy"]["decided_by"] == "ee"
    assert job["policy"]["depths"] == [1, 2, 3, 4]
    assert job["spec"]["policy"]["threshold"] == 0.05
    assert job["totals"]["exit_histogram"] == {str(k): layers.count(k) for k in sorted(set(layers))}
    [engine] = job["totals"]["engines"]
    assert (engine["layers_loaded"], engine["exit"]) == (4, "ee")


def test_labels_leave_too(cli: Run, model: Path, tmp_path: Path) -> None:
    """All tokens of a label leave at one layer, and not those of all rows at the same."""
    texts = ["the quick brown fox", "lazy", "q", "zebra 0123456789"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    task = {"type": "label", "choices": [" fox", "ck dog", "the", "z", " over the lazy dog 12"]}
    spec = early(tmp_path, model, task=task, policy=EE | {"threshold": 0.7}, sampling={})
    ended = cli("run", spec)
    assert ended.status == 0, ended.err
    layers = [set(row["exit"]["token_layers"]) for row in rows(tmp_path)]
    assert all(len(found) == 1 for found in layers)
    assert len(set.union(*layers)) > 1


def test_a_plan_holds_all_exits(cli: Run, tiny: Path, tmp_path: Path) -> None:
    """The layers of all exits are in the memory plan, as they are when it runs."""
    model = shutil.copytree(tiny, tmp_path / "model")
    write_rows(tmp_path / "in.parquet", 11)
    full = json.loads(cli("plan", write_spec(tmp_path, model), "--json").out)
    for depth in (1, 2):
        add_exit(model, "layer:1", depth)
    plan = json.loads(cli("plan", early(tmp_path, model), "--json").out)
    assert plan["exit"] == "ee"
    planned, alone = plan["memory"][-1], full["memory"][-1]
    assert planned["depth"] == alone["depth"] == 4
    assert planned["kv_per_sequence"] * 4 == alone["kv_per_sequence"] * 6
    assert planned["weights"] > alone["weights"]


def test_models_that_can_not_be_left_are_refused(cli: Run, tiny: Path, tmp_path: Path) -> None:
    """Without exits, or with one that changes layers before it, the spec is refused."""
    model = shutil.copytree(tiny, tmp_path / "model")
    write_rows(tmp_path / "in.parquet", 3)
    ended = cli("run", early(tmp_path, model))
    assert ended.status == 2
    assert "no exits to choose from" in ended.err
    tensors = random_exit("bridge", (3,))
    said = metadata(model, 2, "bridge", tail=(3,))
    write_exit(model / "exits" / "exit-02.safetensors", said, tensors)
    ended = cli("plan", early(tmp_path, model))
    assert ended.status == 2
    assert "exits at depths [2] change layers" in " ".join(ended.err.split())
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("delta.0.")}
    write_exit(model / "exits" / "exit-02.safetensors", said, own)
    assert cli("plan", early(tmp_path, model)).status == 0


def test_a_warm_engine_serves_jobs_of_one_policy(model: Path, tmp_path: Path) -> None:
    """Another job with the same model and policy finds the engine warm; another threshold, or no
    policy, does not."""

    def job(**changes: Any) -> Job:
        return prepare(load_spec(str(early(tmp_path, model, **changes))))

    warm = WarmEngine()
    first = warm.serve("a", job(), ALONE)
    assert warm.serve("b", job(sampling={"max_tokens": 3}), ALONE) is first
    assert warm.loads == 1
    assert warm.serve("c", job(policy=EE | {"threshold": 0.5}), ALONE) is not first
    warm.serve("d", job(policy={"type": "vanilla"}, depth="full"), ALONE)
    assert warm.loads == 3
