"""SmolLM2-135M itself: the same text as transformers, and memory as planned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helios_batch.samples import docstrings
from tests.support.jobs import ROOT, command, rows, write_spec

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(900)]

ROWS = 200
MAX_TOKENS = 12
SYSTEM = "You write terse technical summaries."


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Docstrings spread over the standard library, cut to keep the test short."""
    texts = [row["docstring"] for row in docstrings()]
    return [f"Summarize: {text[:160]}" for text in texts[:: len(texts) // ROWS][:ROWS]]


@pytest.fixture(scope="module")
def expected(pack: Path, prompts: list[str]) -> list[str]:
    """What `generate` of transformers says in float32, greedily, of chats."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pack, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(pack, dtype=torch.float32).eval()
    texts = []
    for begin in range(0, ROWS, 25):
        chats = [
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
            for prompt in prompts[begin : begin + 25]
        ]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
            )
        new = out[:, batch["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


@pytest.mark.parametrize(("batch", "shard"), [(1, 200), (7, 33), (64, 64)])
def test_text_is_that_of_transformers(
    pack: Path,
    prompts: list[str],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    batch: int,
    shard: int,
) -> None:
    """Full depth, float32, temperature 0: 200 rows identical, whatever batch and shard."""
    pq.write_table(pa.table({"text": prompts}), tmp_path / "in.parquet")
    spec = write_spec(
        tmp_path,
        "smollm2-135m",
        prompt={"column": "text", "system": SYSTEM},
        sampling={"max_tokens": MAX_TOKENS},
        output={"path": str(tmp_path / "out"), "rows_per_shard": shard},
        resources={"dtype": "float32", "memory": "3GiB", "max_batch": batch},
    )
    ended = command(monkeypatch, capfd, "run", spec)
    assert ended.status == 0, ended.err
    assert [row["generated_text"] for row in rows(tmp_path)] == expected
    job = json.loads((tmp_path / "out" / "_job.json").read_text())
    assert job["totals"]["largest_batch"] == batch


MEASURE = """
import json, sys, threading
import torch, transformers
from helios_batch.job import prepare
from helios_batch.loading import load_engine
from helios_batch.spec_file import load_spec
from tests.support.engines import Silent
from helios_batch.local import run_local
from helios_batch.models.tokenizer import Tokenizer

def own():
    # pages of files are those of libraries, which the system takes away and brings back at will;
    # weights are read, not mapped
    lines = (line.split() for line in open("/proc/self/status") if line.startswith("Rss"))
    return 1024 * sum(int(size) for name, size, _ in lines if name != "RssFile:")

job = prepare(load_spec(sys.argv[1]))
Tokenizer(job.model.path, job.created).encode(["warm up"])
torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))
before = peak = own()
ended = threading.Event()

def watch():
    global peak
    while not ended.wait(0.005):
        peak = max(peak, own())

watcher = threading.Thread(target=watch)
watcher.start()
run_local(job, load_engine, Silent())
ended.set()
watcher.join()
highest = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"before": before, "peak": peak, "resident": int(highest.split()[1]) * 1024}))
"""


def measure(spec: Path) -> dict[str, int]:
    """Run a job in a process of its own; return its resident memory before and at the peak."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(spec)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def memory_job(folder: Path, prompts: list[str], depth: int | str, memory: str) -> Path:
    pq.write_table(pa.table({"text": prompts[:96]}), folder / "in.parquet")
    spec: dict[str, Any] = {
        "depth": depth,
        "sampling": {"max_tokens": 64, "ignore_eos": True},
        "output": {"path": str(folder / "out"), "rows_per_shard": 96},
        "resources": {"dtype": "auto", "memory": memory, "threads": 2},
    }
    return write_spec(folder, "smollm2-135m", **spec)


def test_fewer_layers_take_less_memory(pack: Path, prompts: list[str], tmp_path: Path) -> None:
    """Peak resident memory at depth 10 is below full depth's; both are printed."""
    peaks = {}
    for depth in (10, 30):
        folder = tmp_path / str(depth)
        folder.mkdir()
        peaks[depth] = measure(memory_job(folder, prompts, depth, "1GiB"))["resident"]
        print(f"depth {depth}: peak resident {peaks[depth] / 2**20:.0f} MiB")
    assert peaks[10] < peaks[30] - 100 * 2**20


@pytest.mark.parametrize(
    ("memory", "long"), [("360MiB", False), ("500MiB", False), ("500MiB", True)]
)
def test_the_budget_holds(
    pack: Path, prompts: list[str], tmp_path: Path, memory: str, long: bool
) -> None:
    """Weights, KV cache and activations together stay inside the budget, as the system sees it.

    Long prompts (about 2,000 tokens) are prefilled in chunks, with masks over their whole past.
    """
    if long:
        prompts = [" ".join(prompts[i : i + 50]) for i in range(12)]
    elif memory == "360MiB":
        prompts = prompts[:24]  # few run at once; its peak is that of the first ones
    found = measure(memory_job(tmp_path, prompts, "full", memory))
    used = found["peak"] - found["before"]
    print(f"budget {memory}: {used / 2**20:.0f} MiB used beside the libraries' own")
    assert used <= int(memory.removesuffix("MiB")) * 2**20
