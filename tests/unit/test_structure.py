"""The layout's rules, read off the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "helios_batch"
# what each folder may import of the package; the root's own modules are told apart below
ALLOWED = {
    "data": {"data"},
    "models": {"models"},
    "engine": {"engine", "models"},
    "tune": {"tune", "data", "engine", "models", "job", "local", "loading", "samples", "spec_file"},
    "helios": {"helios"},
    "adaptive": {
        *("adaptive", "engine", "models", "helios", "job", "candidates", "contenders"),
    },
    "bench": {"bench", "adaptive", "data", "engine", "helios", "job", "loading", "staged"},
    "simulate": {"simulate", "engine", "models", "helios"},
    "report": {
        *("report", "bench", "preflight", "engine", "models", "tune", "helios", "simulate"),
    },
    "queue": {
        *("queue", "report", "data", "engine", "job", "shard", "loading", "finish", "spec_file"),
        *("policy_file", "supervision"),
    },
}
LEAVES = {
    "errors",
    "spec",
    "spec_policy",
    "spec_quality",
    "spec_section",
    "strict_yaml",
    "hardware",
    "units",
    "records",
    "cache",
    "totals",
    "crashpoint",
    "",
}
ROOT_FREE = {
    *("cli", "job", "shard", "local", "finish", "totals", "preflight", "records", "spec", "errors"),
    *("crashpoint", "policy_file", "candidates", "hardware", "promise", "supervision"),
}
TORCH_FREE = {
    "engine/slots.py",
    "engine/memory.py",
    "engine/scheduler.py",
    "engine/sequence.py",
    "engine/tape.py",
    "engine/verdict.py",
    "models/choices.py",
    "models/config.py",
    "models/packs.py",
    "models/wheels.py",
    "models/architectures.py",
    "models/catalog.py",
    "models/tensor_names.py",
    "models/exits/metadata.py",
    "models/repository/entry.py",
    "models/repository/files.py",
    "models/repository/record.py",
    "tune/request.py",
    "tune/sample.py",
    "tune/result.py",
    "tune/prompts.py",
}


def imports(file: Path, *, top_level_only: bool = False) -> set[str]:
    """Return the full names of the modules that a file imports."""
    tree = ast.parse(file.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_imports_point_one_way() -> None:
    """A folder imports only what lies below it, and the root's shared nouns."""
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).parts
        if len(parts) == 1:
            continue
        for name in imports(file):
            if not name.startswith("helios_batch"):
                continue
            target = name.partition(".")[2].partition(".")[0]
            allowed = ALLOWED[parts[0]] | LEAVES
            assert target in allowed, f"{'/'.join(parts)} imports {name}"


def test_what_needs_no_torch_imports_none() -> None:
    """Scheduler, sequences, slots, planner and all of data are torch-free."""
    free = {PACKAGE / name for name in TORCH_FREE} | set((PACKAGE / "data").glob("*.py"))
    free |= {PACKAGE / f"{name}.py" for name in ROOT_FREE}
    free |= set((PACKAGE / "queue").rglob("*.py")) | set((PACKAGE / "helios").glob("*.py"))
    free |= set((PACKAGE / "simulate").glob("*.py"))
    for file in free:
        names = {name.split(".")[0] for name in imports(file, top_level_only=True)}
        assert not names & {"torch", "transformers"}, f"{file} imports {names}"


def test_nothing_outside_the_queue_knows_celery_or_redis() -> None:
    """Only `queue/` may import celery or redis."""
    for file in PACKAGE.rglob("*.py"):
        if "queue" not in file.parts:
            names = {name.split(".")[0] for name in imports(file)}
            assert not names & {"celery", "redis"}, str(file)


def test_the_command_line_starts_without_torch() -> None:
    """Importing the CLI loads no heavy library, so that --help answers at once."""
    code = "import sys, helios_batch.cli; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "pyarrow", "polars", "celery", "redis"} & set(loaded)


def test_policies_are_simulated_without_torch() -> None:
    """The simulated engine runs the policy's own code, and nothing of the real ones."""
    code = "import sys, helios_batch.simulate.comparison, helios_batch.simulate.ablations; "
    loaded = subprocess.run(
        [sys.executable, "-c", code + "print(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"torch", "transformers", "pyarrow"} & set(loaded)


def test_a_job_is_checked_without_torch() -> None:
    """Submitting, and a worker's process that dispatches, load no engine's libraries."""
    code = "import sys, helios_batch.queue.worker, helios_batch.job; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers"} & set(loaded)
