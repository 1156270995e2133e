"""The processes of torchrun, which all enter the same command: rank 0 runs it, the others share its work.

The others wait for what rank 0 wants done by all, do it at the same time as rank 0, and wait for more until
it says that the command is over. They are silent and open no project; Ctrl-C and SIGTERM do not end them, but
let the training loop save and end in all.

An error is told once: by rank 0 if it has one as well, or else by the first rank that has. What breaks in the
other ranks because that one has left is not told again, and of a rank that is killed those tell that miss it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

from isoflop.errors import TrainError
from isoflop.interrupt import ASKING, Interrupted

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FAILED = 1  # exit code of a rank that fails in silence
GRACE_SECONDS = 3.0  # for rank 0, which the user watches, to tell of an error that all have

Result = TypeVar("Result")


def by_torchrun() -> bool:
    """Whether this process was started by torchrun, or by something else that sets the same variables."""
    return all(name in os.environ for name in VARIABLES)


def on_this_machine() -> int:
    """How many of torchrun's processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])


class Group:
    """This process among those of torchrun; `store` is torchrun's, `number` its rank."""

    def __init__(self, store: Any, number: int) -> None:
        self._store, self._number = store, number
        self.whole = True  # no rank has left
        self.asked = False  # to end, by a signal that this rank got

    def lead(self, command: Callable[[], int]) -> int:
        """On rank 0: run the command, then let the others go."""
        try:
            return command()
        finally:
            if self.whole:
                with suppress(RuntimeError):  # one has left meanwhile, and said why
                    _told(None)

    def share(self, task: Callable[[], Result]) -> Result:
        """On rank 0: call `task` on every rank at once; returns what it did here.

        Raises what it raised here, SystemExit when another rank was the first to fail and has said so, and
        TrainError when one was killed.
        """
        import cloudpickle

        with self.speaking_once():
            _told(cloudpickle.dumps(task))
            return task()

    def serve(self) -> int:
        """On the other ranks: do what rank 0 shares until it ends."""
        for number in ASKING:
            signal.signal(number, self._ask)
        with self.speaking_once():
            while (task := _told(None)) is not None:
                with suppress(Interrupted):  # rank 0 says when to leave
                    _loaded(task)()
        return 0

    @contextmanager
    def speaking_once(self) -> Iterator[None]:
        """Let an error out on the rank that tells of it; others, and those that were asked to end, exit."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            self.whole = False
            broken = _broken(error)
            if (broken and self.asked) or not self._first():
                raise SystemExit(FAILED) from None
            if broken:
                raise killed(int(os.environ["WORLD_SIZE"])) from None
            raise
        except BaseException:
            self.whole = False
            raise

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _first(self) -> bool:
        """Whether no other rank has told of an error before."""
        if self._number > 0:
            time.sleep(GRACE_SECONDS)
        mine = str(self._number)
        with suppress(RuntimeError):  # the machine that keeps the store is gone
            return bool(self._store.compare_set("told by", "", mine).decode() == mine)
        return True


_group: Group | None = None  # of this process


def group() -> Group | None:
    """This process's place among those of torchrun; None elsewhere, also in worker processes."""
    return _group


def enter(store: Any, number: int) -> Group:
    """Make this process one of torchrun's."""
    global _group
    _group = Group(store, number)
    return _group


def asked() -> bool:
    """Whether this process, one of torchrun's other than rank 0, was asked to end."""
    return _group is not None and _group.asked


def killed(ranks: int) -> TrainError:
    """The error of a run that lost a process."""
    return TrainError(
        f"one of the {ranks} processes of this run was killed",
        hint="look for a lack of memory, then run the same command again: it goes on where it was",
    )


def _told(task: bytes | None) -> bytes | None:
    """Rank 0's task, on every rank; None when there is no more."""
    import torch.distributed as dist

    parcel = [task]
    dist.broadcast_object_list(parcel, src=0)
    return parcel[0]


def _loaded(task: bytes) -> Callable[[], Any]:
    import cloudpickle

    loaded: Callable[[], Any] = cloudpickle.loads(task)
    return loaded


def _broken(error: Exception) -> bool:
    """Whether an error is that of a connection whose other end is gone: gloo has no class for it."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
