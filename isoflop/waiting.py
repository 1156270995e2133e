"""How long OpenMP's threads wait for each other in a loop before they sleep.

GNU's, which torch and llama.cpp compute with, loop for seconds where nothing says otherwise. Where one busy
process of somebody else's shares two cores, a training step then takes 27 times as long as on free ones: the
thread that has a core waits for the one that has none. Fewer looks cost some percent on a free machine, for
who sleeps has to be woken (docs/LOG.md, 2026-11-27).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SPIN, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"  # read when the library is loaded
TRAINING = 30_000  # looks: about a millisecond
SERVING = 3_000  # between two tokens the cores are for who sends them


def waiting(looks: int) -> Mapping[str, str]:
    """This process's environment for a child that waits so, unless the user said how to."""
    own = os.environ.get(SPIN, str(TRAINING)) == str(TRAINING) and POLICY not in os.environ
    return {**os.environ, SPIN: str(looks)} if own else dict(os.environ)


def wait_briefly() -> None:
    """This process and its children, before torch is imported."""
    os.environ.update(waiting(TRAINING))
