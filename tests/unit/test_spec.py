"""The job spec: what is accepted, and how what is not is explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_batch.errors import SpecError
from helios_batch.spec import JobSpec, LimitSpec, digest
from helios_batch.spec_file import load_spec, parse_spec
from helios_batch.units import parse_bytes

LEAST: dict[str, Any] = {
    "name": "t",
    "input": {"path": "in.parquet"},
    "prompt": {"template": "{{ text }}"},
    "models": ["smollm2-135m"],
    "output": {"path": "out"},
}
WHOLE = """
name: stdlib-summaries
input:
  path: data/docstrings.parquet
  columns: [module, name]
prompt:
  template: "Summarize in one sentence:\\n{{ docstring }}"
  system: "You write terse technical summaries."
task: {type: generate}
sampling:
  {max_tokens: 48, temperature: 0, top_p: 1.0, top_k: 0, seed: 0, stop: [], ignore_eos: false}
models: [smollm2-135m]
depth: 10
objective: throughput
quality: null
output: {path: out/stdlib-summaries, rows_per_shard: 512}
resources: {device: auto, dtype: auto, memory: 2GiB, threads: 2, max_batch: null}
limits: {max_failed_rows: 1%, max_total_tokens: null, deadline: null}
"""


def test_every_key_of_the_contract_is_read(tmp_path: Path) -> None:
    """A spec that gives every key comes back with every value; defaults are those documented."""
    file = tmp_path / "job.yaml"
    file.write_text(WHOLE)
    spec = load_spec(file)
    assert spec.input.columns == ("module", "name")
    assert spec.depth == 10
    assert spec.resources.memory == 2 * 2**30
    assert spec.limits.failed_rows_allowed(2000) == 20
    assert spec.sampling.temperature == 0.0
    least = parse_spec(LEAST, "here")
    assert (least.depth, least.output.rows_per_shard) == ("full", 512)
    assert least.limits.failed_rows_allowed(10) is None


def test_json_is_read_too(tmp_path: Path) -> None:
    """A spec may be JSON; what a spec dumps is a spec again."""
    file = tmp_path / "job.json"
    file.write_text(json.dumps(LEAST))
    spec = load_spec(file)
    file.write_text(json.dumps(LEAST | {"name": "\N{ROCKET}"}, indent="\t"))
    assert load_spec(file).name == "\N{ROCKET}"
    file.write_text('{"name": "a", "name": "b"}')
    with pytest.raises(SpecError, match="'name' is given twice"):
        load_spec(file)
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_yaml_merge_keys(tmp_path: Path) -> None:
    """Anchors and merges work; what they bring in may be overridden."""
    file = tmp_path / "job.yaml"
    file.write_text(
        WHOLE.replace("limits: {", "limits: {<<: {max_failed_rows: 7}, ").replace(
            "max_failed_rows: 1%, ", ""
        )
    )
    assert load_spec(file).limits.max_failed_rows == 7
    file.write_text(WHOLE.replace("limits: {", "limits: {<<: {max_failed_rows: 7}, "))
    assert load_spec(file).limits.max_failed_rows == 0.01


def promise(**quality: Any) -> dict[str, Any]:
    return {"depth": "auto", "quality": quality}


LABELS: dict[str, Any] = {"task": {"type": "label", "choices": ["io", "math"]}}
WRONG = [
    ({"nmae": 1}, "nmae: unknown key", "name, input, prompt"),
    ({"input": {"path": "x", "column": ["a"]}}, "input.column: unknown key", "path, columns"),
    ({"input": {"path": []}}, "input.path: write a path, or a list of", ""),
    ({"input": {"path": ["a", "a"]}}, "each once", ""),
    ({"input": {"path": ["a", ""]}}, "input.path: write a path, or a list of", ""),
    ({"input": {"path": ""}}, "input.path: write a path, or a list of", ""),
    ({"input": {"path": 3}}, "input.path: write a path, or a list of", ""),
    ({"input": {"path": "x", "columns": ["a", "a"]}}, "input.columns: name each column once", ""),
    ({"prompt": {}}, "exactly one of template, column, messages", ""),
    ({"prompt": {"template": "a", "column": "b"}}, "found template and column", ""),
    ({"prompt": {"messages": "m", "system": "s"}}, "carry their own system", ""),
    ({"task": {"type": "classify"}}, "task.type: Input should be 'generate' or 'label'", ""),
    ({"task": {"type": "label"}}, "task: type label needs choices", ""),
    ({"task": {"choices": ["a", "b"]}}, "task: choices go with type label", ""),
    ({"task": {"type": "label", "choices": ["a"]}}, "task.choices: write a list of two or", ""),
    ({"task": {"type": "label", "choices": "a, b"}}, "task.choices: write a list of two or", ""),
    ({"task": {"type": "label", "choices": ["a", "a"]}}, "each once and none of them empty", ""),
    ({"task": {"type": "label", "choices": ["a", ""]}}, "each once and none of them empty", ""),
    ({"task": {"type": "label", "choices": [True, False]}}, "put True in quotes", ""),
    (LABELS | {"sampling": {"temperature": 1}}, "sampling: temperature has no meaning", ""),
    (LABELS | {"sampling": {"stop": ["x"]}}, "sampling: stop has no meaning in a label task", ""),
    (LABELS | {"sampling": {"seed": 1}}, "scored and not sampled: leave it out", ""),
    ({"quality": {"min_agreement": 0.9}}, "write depth: auto with it", ""),
    ({"policy": "helios"}, "policy helios goes with depth: auto", ""),
    ({"policy": "vanilla", "depth": "auto"}, "policy vanilla goes with depth: full", ""),
    ({"policy": "best"}, "policy.type: Input should be 'vanilla', 'ee'", ""),
    ({"policy": {"type": "ee", "threshold": 1.5}, "depth": "auto"}, "policy.threshold", ""),
    ({"policy": {"type": "helios", "limit": 100}, "depth": "auto"}, "a limit under the window", ""),
    (
        {"depth": "auto", "policy": "helios", "quality": {"min_agreement": 0.9}},
        "makes its own policy",
        "",
    ),
    ({"depth": "auto", "quality": {"min_agreement": 1.5}}, "quality.min_agreement", ""),
    ({"depth": "auto", "quality": {"min_agreement": "all"}}, "quality.min_agreement", ""),
    ({"depth": "auto", "quality": {"min_agreement": 1e-17}}, "quality.min_agreement", ""),
    (
        {
            "depth": "auto",
            "quality": {"min_agreement": 0.9, "guarantee": "expectation", "confidence": 0.9},
        },
        "confidence goes with guarantee: probability",
        "",
    ),
    ({"depth": "auto", "quality": {"min_agreement": 0.9, "metric": "label"}}, "does not go", ""),
    (promise(), "quality: say what is promised: min_agreement", ""),
    (promise(metric="token"), "quality: say what is promised: min_agreement", ""),
    (promise(max_perplexity=1.1), "max_perplexity goes with metric: perplexity", ""),
    (promise(max_perplexity=1.1, metric="exact"), "goes with metric: perplexity", ""),
    (promise(max_perplexity=1.1, min_agreement=0.9), "goes with metric: perplexity", ""),
    (promise(metric="perplexity"), "metric perplexity needs max_perplexity", ""),
    (promise(metric="perplexity", min_agreement=0.9), "write max_perplexity", ""),
    (
        promise(metric="perplexity", min_agreement=0.9, max_perplexity=1.1),
        "min_agreement does not go with metric perplexity",
        "",
    ),
    (promise(metric="perplexity", max_perplexity=1), "quality.max_perplexity", ""),
    (promise(metric="perplexity", max_perplexity=8), "quality.max_perplexity", ""),
    (promise(metric="perplexity", max_perplexity="10%"), "quality.max_perplexity", ""),
    (promise(metric="perplexity", max_perplexity=float("nan")), "quality.max_perplexity", ""),
    (
        LABELS | promise(metric="perplexity", max_perplexity=1.1),
        "metric perplexity does not go with a task of type label",
        "",
    ),
    (
        {
            "depth": "auto",
            "quality": {"min_agreement": 0.9},
            "sampling": {"max_tokens": 4, "temperature": 0.5},
        },
        "write sampling.temperature: 0",
        "",
    ),
    ({"depth": 0}, "depth: write full, auto or a number of layers, 1 or more (found 0)", ""),
    ({"depth": True}, "depth: write full, auto or a number of layers", ""),
    ({"objective": "latency"}, "objective: an objective other than throughput", ""),
    ({"models": ["a", "b"]}, "of several models only policy helios and a promise", ""),
    ({"models": []}, "models: write a list of one model", ""),
    ({"limits": {"deadline": "soon"}}, "limits.deadline: write a time such as", ""),
    ({"limits": {"max_total_tokens": 5}}, "limits.max_total_tokens: this limit is not", ""),
    ({"limits": {"max_failed_rows": "101%"}}, "write a share such as 1%", ""),
    ({"limits": {"max_failed_rows": -1}}, "can't be negative", ""),
    ({"sampling": {"temperature": -1}}, "sampling.temperature: Input should be greater", ""),
    ({"sampling": {"temperature": float("nan")}}, "sampling.temperature", ""),
    ({"sampling": {"temperature": 1e-39}}, "write 0 for greedy, or 0.01 or more", ""),
    ({"sampling": {"top_p": 0}}, "sampling.top_p: Input should be greater than 0", ""),
    ({"sampling": {"max_tokens": "48"}}, "sampling.max_tokens: Input should be a valid", ""),
    ({"sampling": {"stop": [""]}}, "sampling.stop.0", ""),
    ({"resources": {"memory": "2 gigs"}}, "write a size such as 2GiB", ""),
    ({"resources": {"device": "gpu"}}, "resources.device", ""),
    ({"resources": {"threads": 0}}, "resources.threads", ""),
    ({"output": {"path": "o", "rows_per_shard": 0}}, "output.rows_per_shard", ""),
    ({"output": {}}, "output.path: this key is required", ""),
]


def test_a_promise_of_perplexity() -> None:
    """The ratio takes the place of the agreement, and may be written without a point."""
    spec = parse_spec(LEAST | promise(metric="perplexity", max_perplexity=2), "here")
    assert spec.quality is not None
    assert (spec.metric, spec.quality.asked) == ("perplexity", 2.0)
    assert "a perplexity of at most 2 times full depth's" in spec.quality.describe(spec.metric)
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_label_tasks() -> None:
    """Choices keep their order; sampling, which has no part in labels, is no part of the job."""
    spec = parse_spec(LEAST | LABELS, "here")
    assert spec.task.choices == ("io", "math")
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
    longer = parse_spec(LEAST | LABELS | {"sampling": {"max_tokens": 5}}, "here")
    assert longer.identity() == spec.identity()
    turned = {"task": {"type": "label", "choices": ["math", "io"]}}
    assert parse_spec(LEAST | turned, "here").identity() != spec.identity()
    assert parse_spec(LEAST, "here").identity()["task"] == {"type": "generate"}


@pytest.mark.parametrize(("change", "message", "fix"), WRONG, ids=[str(w[0]) for w in WRONG])
def test_errors_name_key_value_and_remedy(change: dict[str, Any], message: str, fix: str) -> None:
    """Every wrong or not yet available key is refused by name."""
    with pytest.raises(SpecError) as caught:
        parse_spec(LEAST | change, "job.yaml")
    assert message in caught.value.what
    assert caught.value.where == "job.yaml"
    assert caught.value.fix
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("name: a\nname: b\n", "'name' is given twice"),
        ("- a\n", "not a mapping"),
        ("", "not a mapping"),
        ("name: 2024-13-45\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("\xff", "can't read the job spec"),
    ],
)
def test_files_that_are_no_specs(text: str, message: str, tmp_path: Path) -> None:
    """Broken YAML, duplicate keys, code and other encodings are explained."""
    file = tmp_path / "job.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match=message):
        load_spec(file)
    with pytest.raises(SpecError, match="can't read"):
        load_spec(tmp_path / "absent.yaml")


def test_identity_holds_what_decides_the_output_and_no_more() -> None:
    """Resources, limits, name and place may change between runs; the rest may not."""
    spec = parse_spec(LEAST, "here")
    same = [
        {"name": "other"},
        {"output": {"path": "elsewhere"}},
        {"resources": {"memory": "1GiB", "threads": 1, "max_batch": 3, "dtype": "float32"}},
        {"limits": {"max_failed_rows": 3}},
    ]
    other = [
        {"sampling": {"seed": 1}},
        {"depth": 3},
        {"output": {"path": "out", "rows_per_shard": 7}},
        {"prompt": {"template": "{{ text }} "}},
    ]
    base = digest(spec.identity())
    for change in same:
        assert digest(parse_spec(LEAST | change, "").identity()) == base
    for change in other:
        assert digest(parse_spec(LEAST | change, "").identity()) != base


def test_one_path_or_several() -> None:
    """A list of paths is kept in order; a single path stays a string, and so its fingerprints."""
    one = parse_spec(LEAST, "here")
    several = parse_spec(LEAST | {"input": {"path": ["b", "a"]}}, "here")
    assert (one.input.paths, several.input.paths) == (("in.parquet",), ("b", "a"))
    assert one.identity()["input"] == {"path": "in.parquet", "columns": None}
    assert several.identity()["input"]["path"] == ["b", "a"]
    assert parse_spec(several.model_dump(mode="json"), "") == several


@given(st.integers(1, 10**6), st.sampled_from([("KiB", 2**10), ("MB", 10**6), ("GiB", 2**30)]))
def test_sizes(count: int, unit: tuple[str, int]) -> None:
    """Binary and decimal units are told apart."""
    assert parse_bytes(f"{count}{unit[0]}") == parse_bytes(f" {count} {unit[0]}") == count * unit[1]


def test_shares_are_of_all_rows() -> None:
    """A share is rounded down to whole rows; a count stands as it is."""
    assert LimitSpec.model_validate({"max_failed_rows": "1%"}).failed_rows_allowed(199) == 1
    assert LimitSpec.model_validate({"max_failed_rows": 5}).failed_rows_allowed(199) == 5
    assert LimitSpec.model_validate({"max_failed_rows": 0}).failed_rows_allowed(199) == 0
