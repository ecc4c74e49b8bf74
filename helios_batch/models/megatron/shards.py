"""Finding the files of a Megatron checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from helios_batch.errors import ModelError

_TRACKER = "latest_checkpointed_iteration.txt"
_FILE = "model_optim_rng.pt"
_RANK = re.compile(r"mp_rank_(\d+)(?:_(\d+))?$")


@dataclass(frozen=True, slots=True)
class Shards:
    """The files of one iteration by (tensor rank, pipeline stage)."""

    folder: Path
    files: dict[tuple[int, int], Path]

    def stage(self, stage: int, tensor_parallel: int) -> list[Path]:
        """Return a stage's files in the order of tensor ranks.

        Raises:
            ModelError: one is missing.
        """
        ranks = [(rank, stage) for rank in range(tensor_parallel)]
        missing = [key for key in ranks if key not in self.files]
        if missing:
            rank, _ = missing[0]
            raise ModelError(
                f"the shard of tensor rank {rank}, pipeline stage {stage} is missing",
                where=str(self.folder),
                fix=f"put mp_rank_{rank:02d}_{stage:03d}/{_FILE} there; EE-Tuning saves only the "
                "stages that it loaded: the others are in the checkpoint that it started from",
            )
        return [self.files[key] for key in ranks]


def find_shards(source: Path) -> Shards:
    """Find the shards under `source`: a checkpoint's folder, or one iteration's.

    Raises:
        ModelError: there are none, or the latest iteration's folder is not there.
    """
    folder = _iteration(source)
    files = {}
    for path in sorted(folder.glob("mp_rank_*")):
        match = _RANK.fullmatch(path.name)
        if match and (path / _FILE).is_file():
            files[int(match[1]), int(match[2] or 0)] = path / _FILE
    if not files:
        raise ModelError(
            "there is no checkpoint with exits",
            where=str(folder),
            fix=f"name the folder that holds {_TRACKER}, or one that holds mp_rank_00/{_FILE}, or "
            "that of a Balcony checkpoint with its config.json",
        )
    return Shards(folder, files)


def _iteration(source: Path) -> Path:
    tracker = source / _TRACKER
    if not tracker.is_file():
        return source
    latest = tracker.read_text(encoding="utf-8", errors="replace").strip()
    folder = source / ("release" if latest == "release" else f"iter_{latest:0>7}")
    if not re.fullmatch(r"release|\d+", latest) or not folder.is_dir():
        raise ModelError(
            f"the latest iteration is said to be {latest!r}, and there is no such folder",
            where=str(tracker),
            fix="copy the whole checkpoint, or name the folder of an iteration",
        )
    return folder
