"""Tests; `OMP_WAIT_POLICY` has to be set before torch is loaded.

Threads that spin while they wait make tests ten times slower where something else runs too.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
