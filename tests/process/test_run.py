"""`helios-batch run`, from the spec to the parts, on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.jobs import Ended, command, parts, rows, write_spec
from tests.support.parquet import write_rows
from tests.support.tiny import edit_config, make_model

Run = Callable[..., Ended]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], cache: Path) -> Run:
    """The command line, in this process, with a cache of its own."""
    return lambda *arguments: command(monkeypatch, capfd, *arguments)


def test_a_job_end_to_end(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Every row comes out once, in order, with its text and its exit; `_SUCCESS` is last."""
    given = write_rows(tmp_path / "in.parquet", 11)
    ended = cli("run", write_spec(tmp_path, tiny, depth=3))
    assert ended.status == 0, ended.err
    out = rows(tmp_path)
    assert [row["id"] for row in out] == given.column("id").to_pylist()
    assert [row["row_id"]["row"] for row in out] == list(range(11))
    assert all(row["error"] is None and row["generated_text"] is not None for row in out)
    assert all(row["exit"]["token_layers"] == [3] * row["completion_tokens"] for row in out)
    assert [part.name for part in parts(tmp_path)] == [f"part-0000{i}.parquet" for i in range(3)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name.startswith("_")) == [
        "_SUCCESS",
        "_job.json",
    ]
    job = json.loads((tmp_path / "out" / "_job.json").read_text())
    totals = job["totals"]
    assert job["status"] == "done"
    assert totals["rows"] == 11
    tokens = sum(row["completion_tokens"] for row in out)
    assert totals["completion_tokens"] == totals["exit_histogram"]["3"] == tokens
    assert set(totals["seconds"]) == {"read", "prefill", "decode", "write"}
    [engine] = totals["engines"]
    assert engine["layers_loaded"] == 3
    assert 0 < engine["weight_bytes_left"] < engine["weight_bytes_loaded"]
    assert totals["largest_batch"] == 4
    assert 0 < totals["mean_batch"] <= 4
    assert totals["tokens_per_second"] > 0
    assert "layer 3" in ended.out


def test_running_again_repeats_nothing(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Finished shards stay as they are; a lost one alone is redone, with the same rows."""
    write_rows(tmp_path / "in.parquet", 11)
    spec = write_spec(tmp_path, tiny)
    assert cli("run", spec).status == 0
    before = {part: (part.read_bytes(), part.stat().st_mtime_ns) for part in parts(tmp_path)}
    expected = rows(tmp_path)
    again = cli("run", spec, "--json")
    assert json.loads(again.out)["resumed_rows"] == 11
    assert "loading" not in again.err, "an engine was made with nothing to do"
    parts(tmp_path)[1].unlink()
    assert json.loads(cli("run", spec, "--json").out)["resumed_rows"] == 7
    assert rows(tmp_path) == expected
    for i in (0, 2):
        part = parts(tmp_path)[i]
        assert (part.read_bytes(), part.stat().st_mtime_ns) == before[part]
    # other resources are the same job
    write_spec(tmp_path, tiny, resources={"dtype": "float32", "memory": "100MiB", "max_batch": 2})
    assert cli("run", spec).status == 0


def test_shard_and_batch_sizes_do_not_change_rows(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """The same rows come out whatever the shards and batches, sampled ones too."""
    write_rows(tmp_path / "in.parquet", 11)
    outputs = []
    for size, batch in ((11, 64), (3, 2), (1, 1)):
        spec = write_spec(
            tmp_path,
            tiny,
            output={"path": str(tmp_path / "out"), "rows_per_shard": size},
            resources={"dtype": "float32", "memory": "64MiB", "max_batch": batch},
            sampling={"max_tokens": 12, "temperature": 0.8, "seed": 4},
        )
        assert cli("run", spec).status == 0
        outputs.append(rows(tmp_path))
        shutil.rmtree(tmp_path / "out")
    assert outputs[0] == outputs[1] == outputs[2]


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


def test_an_empty_input(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """No rows: success, and one empty part with the full schema."""
    write_rows(tmp_path / "in.parquet", 0)
    assert cli("run", write_spec(tmp_path, tiny)).status == 0
    [part] = parts(tmp_path)
    empty = pq.read_table(part)
    assert empty.num_rows == 0
    assert empty.column_names[:3] == ["id", "text", "row_id"]
    assert (tmp_path / "out" / "_SUCCESS").exists()


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
        (change(depth="auto"), "depth 'auto' is not available"),
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


def test_a_changed_job_is_noticed(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Another spec, input or model in the same folder is refused, naming what changed."""
    write_rows(tmp_path / "in.parquet", 5)
    assert cli("run", write_spec(tmp_path, tiny)).status == 0
    before = rows(tmp_path)
    ended = cli("run", write_spec(tmp_path, tiny, sampling={"max_tokens": 5}))
    assert ended.status == 2
    assert "spec.sampling.max_tokens: was 12, is 5" in ended.err
    write_rows(tmp_path / "in.parquet", 5, first=1)
    ended = cli("run", write_spec(tmp_path, tiny))
    assert ended.status == 2
    assert "input[0].content" in ended.err
    write_rows(tmp_path / "in.parquet", 5)
    make_model(tmp_path / "model", "llama3", seed=1)
    shutil.copytree(tiny, tmp_path / "copy")
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "copy" / "model.safetensors")
    ended = cli("run", write_spec(tmp_path, tmp_path / "copy"))
    assert ended.status == 2
    assert "model: was" in ended.err
    assert rows(tmp_path) == before


def test_parts_have_one_dtype(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """A resume that would compute in another dtype than the finished parts is refused."""
    write_rows(tmp_path / "in.parquet", 9)
    assert cli("run", write_spec(tmp_path, tiny)).status == 0
    parts(tmp_path)[0].unlink()
    other = {"dtype": "bfloat16", "memory": "64MiB"}
    ended = cli("run", write_spec(tmp_path, tiny, resources=other))
    assert ended.status == 2
    assert "set resources.dtype to float32" in ended.err


def test_success_goes_when_a_part_is_lost(
    cli: Run, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_SUCCESS` never stands beside an incomplete output once a run has looked at it."""
    write_rows(tmp_path / "in.parquet", 9)
    spec = write_spec(tmp_path, tiny)
    assert cli("run", spec).status == 0
    parts(tmp_path)[0].unlink()
    with monkeypatch.context() as patch:
        patch.setattr("helios_batch.local.run_shard", interrupt)
        assert cli("run", spec).status == 130
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert cli("run", spec).status == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


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


def test_names_with_brackets_are_shown_as_they_are(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """Paths that look like markup are printed, not parsed."""
    write_rows(tmp_path / "in.parquet", 3)
    odd = str(tmp_path / "out[/red]")
    ended = cli("run", write_spec(tmp_path, tiny, output={"path": odd}))
    assert (ended.status, "[/red]" in ended.out) == (0, True)


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


def test_plan_writes_nothing(cli: Run, tmp_path: Path, tiny: Path) -> None:
    """`plan` shows rows, tokens, shards, failures to come and memory by depth."""
    texts = ["fox " * 5] * 9 + [None]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    spec = write_spec(tmp_path, tiny)
    made = json.loads(cli("plan", spec, "--json").out)
    assert (made["rows"], made["shards"]) == (10, 3)
    assert made["sample_errors"] == {"null_prompt": 1}
    assert made["prompt_tokens"][0] == made["prompt_tokens"][2] > 0
    batches = [depth["batch_size"] for depth in made["memory"]]
    assert batches == sorted(batches, reverse=True)
    assert "Memory by depth" in cli("plan", spec).out
    assert not (tmp_path / "out").exists()


def test_models_and_doctor(cli: Run, tiny: Path) -> None:
    """The other commands answer, in JSON where asked."""
    [pack] = json.loads(cli("models", "list", "--json").out)
    assert (pack["name"], pack["fetched"]) == ("smollm2-135m", False)
    shown = json.loads(cli("models", "show", str(tiny), "--json").out)
    assert shown["num_layers"] == 4
    assert cli("models", "show", "nope").status == 2
    assert cli("models", "fetch", "nope").status == 2
    checks = {finding["check"]: finding for finding in json.loads(cli("doctor", "--json").out)}
    assert checks["pack smollm2-135m"]["fix"] == "helios-batch models fetch smollm2-135m"
    for arguments in (["doctor"], ["models", "list"], ["models", "show", str(tiny)], ["--help"]):
        assert cli(*arguments).status == 0
    assert cli("run").status == 2
    assert cli("run", "absent.yaml").status == 2
