"""Named points at which a test can kill or stop this process, as a power cut or a pause would."""

from __future__ import annotations

import os
import signal
from pathlib import Path

_WANTED, _, _SIGNAL = os.environ.get("HELIOS_CRASHPOINT", "").partition(":")
_ONCE = os.environ.get("HELIOS_CRASHPOINT_ONCE", "")


def crashpoint(name: str) -> None:
    """Signal this process if `HELIOS_CRASHPOINT` names this point; do nothing otherwise.

    The variable is a point's name, or name and signal as in `publish.confirmed:SIGSTOP`. Where
    `HELIOS_CRASHPOINT_ONCE` names a file, that is created first, and only its creator is signalled.
    """
    if name != _WANTED:
        return
    if _ONCE:
        try:
            Path(_ONCE).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.Signals[_SIGNAL or "SIGKILL"])
