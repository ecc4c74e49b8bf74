"""Opening a pickled checkpoint without running anything that it names."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from helios_batch.errors import ModelError


def load_pickled(path: Path) -> dict[str, Any]:
    """Return what `torch.save` wrote: tensors, plain values and argparse's `Namespace`, no more.

    Anything else that the file asks for is refused before it is imported. Tensors of a file in the
    current format stay on disk until they are used.

    Raises:
        ModelError: the file is damaged, or holds more than plain data.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
    except pickle.UnpicklingError as exc:
        name = re.search(r"GLOBAL (\S+)", str(exc))
        what = f"the pickle asks for {name[1]}" if name else f"the pickle is refused: {_short(exc)}"
        raise ModelError(
            f"{what}; only tensors and plain values are taken from pickles",
            where=str(path),
            fix="if you trust the checkpoint, save it again where it was made, without optimizer "
            "and random states and with only plain values in args; README.md has the lines",
        ) from None
    except Exception as exc:  # a damaged file makes the unpickler raise many kinds
        raise ModelError(
            f"the checkpoint can't be read: {_short(exc)}",
            where=str(path),
            fix="download or copy the file again",
        ) from None
    return found


def _short(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0][:200] or type(exc).__name__
