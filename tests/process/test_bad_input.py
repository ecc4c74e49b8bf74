"""What a user can get wrong: in the request, exit 2; in a row, an error in that row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.jobs import Run, parts, rows, write_spec
from tests.support.parquet import write_rows
from tests.support.tiny import edit_config, make_model


def absent(folder: Path) -> dict[str, Any]:
    return {"input": {"path": str(folder / "absent.parquet")}}


def truncated(folder: Path) -> dict[str, Any]:
    file = folder / "in.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    return {}


def no_parquet(folder: Path) -> dict[str, Any]:
    (folder / "in.parquet").write_text("id,text\n1,a\n")
    return {}


def foreign_output(folder: Path) -> dict[str, Any]:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "data.csv").write_text("")
    return {"output": {"path": str(folder / "elsewhere")}}


def output_is_file(folder: Path) -> dict[str, Any]:
    return {"output": {"path": str(folder / "in.parquet")}}


def unknown_architecture(folder: Path) -> dict[str, Any]:
    make_model(folder / "model")
    edit_config(folder / "model", model_type="rwkv")
    return {"models": [str(folder / "model")]}


def no_weights(folder: Path) -> dict[str, Any]:
    make_model(folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    return {"models": [str(folder / "model")]}


def no_tokenizer(folder: Path) -> dict[str, Any]:
    make_model(folder / "model")
    for file in (folder / "model").glob("tokenizer*"):
        file.unlink()
    return {"models": [str(folder / "model")]}


def change(**keys: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: keys


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (absent, "no Parquet file was found"),
        (truncated, "not a readable Parquet file"),
        (no_parquet, "not a readable Parquet file"),
        (change(prompt={"template": "{{ nope }}"}), "column 'nope' is not in the input"),
        (change(prompt={"template": "{{"}), "the template does not parse"),
        (change(colour="red"), "colour: unknown key"),
        (change(depth="auto"), "has no exits to choose from"),
        (change(policy="ee"), "policy ee goes with depth: auto"),
        (change(depth="auto", quality={"min_agreement": 0.9}), "has no exits to choose from"),
        (change(depth=5), "depth 5 is more than the model has"),
        (change(models=["smollm2"]), "unknown model 'smollm2'"),
        (change(models=["smollm2-135m"]), "run: helios-batch models fetch smollm2-135m"),
        (unknown_architecture, "architecture 'rwkv' is not supported"),
        (no_weights, "no safetensors weights were found"),
        (no_tokenizer, "tokenizer can't be read"),
        (change(resources={"memory": "1MiB"}), "give at least"),
        (change(resources={"device": "cuda:7"}), "there is no device 'cuda:7'"),
        (change(resources={"memory": "900TiB"}), "bytes were asked for"),
        (foreign_output, "data.csv"),
        (output_is_file, "the output path is a file"),
        (change(output={"path": "/proc/helios"}), "the output folder can't be written"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_end_before_anything_is_written(
    cli: Run, tmp_path: Path, tiny: Path, make: Callable[[Path], dict[str, Any]], message: str
) -> None:
    """Exit 2, one message with what and what to do, and no output folder; `plan` agrees."""
    write_rows(tmp_path / "in.parquet", 3)
    spec = write_spec(tmp_path, tiny, **make(tmp_path))
    ended = cli("run", spec)
    assert ended.status == 2
    assert message in ended.err
    assert "fix:" in ended.err
    assert not (tmp_path / "out").exists()
    if "can't be written" not in message:
        planned = cli("plan", spec)
        assert (planned.status, message in planned.err) == (2, True)


def test_output_inside_the_input_is_refused(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Parts written below the input folder would become input of the next run."""
    write_rows(tmp_path / "in" / "a.parquet", 3)
    inside = {"output": {"path": str(tmp_path / "in" / "out")}}
    spec = write_spec(tmp_path, tiny, input={"path": str(tmp_path / "in")}, **inside)
    ended = cli("run", spec)
    assert ended.status == 2
    assert "lies inside the input" in ended.err
    glob = {"path": str(tmp_path / "in" / "*.parquet")}
    assert cli("run", write_spec(tmp_path, tiny, input=glob, **inside)).status == 0


def test_memory_is_planned_for_the_prompts_there_are(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """A budget that can't hold the input's own prompts is refused; a rare longer one is a row's."""
    long = "0123456789 " * 15
    pq.write_table(pa.table({"text": [long] * 3}), tmp_path / "in.parquet")
    planned = json.loads(cli("plan", write_spec(tmp_path, tiny), "--json").out)
    full = next(d for d in planned["memory"] if d["depth"] == 4)
    least = full["weights"] + full["activations"]
    tight = {"dtype": "float32", "memory": least + 100_000}
    ended = cli("run", write_spec(tmp_path, tiny, resources=tight))
    assert (ended.status, (tmp_path / "out").exists()) == (2, False)
    assert "give at least" in ended.err
    texts = ["fox"] * 1023 + [long]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    spec = write_spec(
        tmp_path,
        tiny,
        resources=tight,
        sampling={"max_tokens": 1},
        output={"path": str(tmp_path / "out"), "rows_per_shard": 1024},
    )
    assert cli("run", spec).status == 0
    assert rows(tmp_path)[-1]["error"]["code"] == "exceeds_memory"


def test_bad_rows_carry_errors_and_the_job_goes_on(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Each kind of bad row has its stable code; the rows beside it are as without it."""
    texts = ["fox", None, "0123456789 " * 40, "", "the dog"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    spec = write_spec(
        tmp_path, tiny, prompt={"template": "{{ text }}{{ 1 / (text == 'fox')|int }}"}
    )
    assert cli("run", spec).status == 0
    codes = [row["error"] and row["error"]["code"] for row in rows(tmp_path)]
    assert codes == [None, "null_prompt", "template_error", "template_error", "template_error"]
    shutil.rmtree(tmp_path / "out")
    ended = cli("run", write_spec(tmp_path, tiny))
    assert ended.status == 0
    out = rows(tmp_path)
    assert [row["error"] and row["error"]["code"] for row in out] == [
        None,
        "null_prompt",
        "prompt_too_long",
        "empty_prompt",
        None,
    ]
    assert [row["finish_reason"] == "error" for row in out] == [False, True, True, True, False]
    assert "null_prompt 1" in ended.out


def test_messages_go_through_the_chat_template(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """What the model's template refuses is `bad_messages`; a model without one is told."""
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    chats = [[{"role": role, "content": "hi"}] for role in ("user", "wizard")]
    pq.write_table(pa.table({"m": pa.array([*chats, []], kind)}), tmp_path / "in.parquet")
    spec = write_spec(tmp_path, tiny, prompt={"messages": "m"})
    assert cli("run", spec).status == 0
    out = rows(tmp_path)
    assert [row["error"] and row["error"]["code"] for row in out] == [
        None,
        "bad_messages",
        "bad_messages",
    ]
    assert "unknown role wizard" in out[1]["error"]["message"]
    plain = tmp_path / "plain"
    shutil.copytree(tiny, plain)
    (plain / "chat_template.jinja").unlink()
    shutil.rmtree(tmp_path / "out")
    ended = cli("run", write_spec(tmp_path, plain, prompt={"messages": "m"}))
    assert (ended.status, (tmp_path / "out").exists()) == (2, False)
    assert "has no chat template" in ended.err


def test_too_many_failed_rows(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Past the limit the job ends with the counts; what was computed stays and can go on."""
    texts = ["fox", None, "dog", None] * 4
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    ended = cli("run", write_spec(tmp_path, tiny, limits={"max_failed_rows": 3}))
    assert ended.status == 1
    assert "4 of 8 rows failed so far (null_prompt 4)" in ended.err
    assert len(parts(tmp_path)) == 2
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert json.loads((tmp_path / "out" / "_job.json").read_text())["status"] == "failed"
    assert cli("run", write_spec(tmp_path, tiny, limits={"max_failed_rows": 3})).status == 1
    assert cli("run", write_spec(tmp_path, tiny, limits={"max_failed_rows": "50%"})).status == 0
    assert len(rows(tmp_path)) == 16
    assert (tmp_path / "out" / "_SUCCESS").exists()
