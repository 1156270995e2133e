"""How long OpenMP's threads wait for each other in a loop before they sleep.

GNU's, which torch and llama.cpp compute with, look 300,000 times where nothing says otherwise. Where one busy
process of somebody else's shares two cores, a training step then takes 50 times as long as on free ones: the
thread that has a core waits for the one that has none. With a tenth of the looks it takes 11 times as long,
and on free cores no longer than before; for fewer still free cores pay, for who sleeps has to be woken
(records/2026-11-27_spin).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SPIN, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"  # read when the library is loaded
LOOKS = 30_000


def waiting() -> Mapping[str, str]:
    """This process's environment for a child that waits so, unless the user said how to."""
    return dict(os.environ) if POLICY in os.environ else {SPIN: str(LOOKS), **os.environ}


def wait_briefly() -> None:
    """This process and its children, before torch is imported."""
    os.environ.update(waiting())
