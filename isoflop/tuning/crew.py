"""The machines of a tuning: they take branches one by one, as what comes next depends on what has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from isoflop.errors import LadderError, TrainError
from isoflop.packed import Asked, Take
from isoflop.places import Place, here
from isoflop.progress import Progress
from isoflop.records import Corpus, Run
from isoflop.store import Project

Failure = TrainError | LadderError
Tell = Callable[[Asked, Run | Failure], None]


@dataclass(frozen=True)
class Crew:
    """So many processes of one thread each, on one corpus, at a place.

    A branch has its trunk's checkpoints: a killed process or node costs the work since the last of them, and
    the whole branch once it is killed too often.
    """

    project: Project
    corpus: Corpus
    workers: int
    progress: Progress
    pressed: Callable[[], bool]  # of `interrupt.heeded`
    place: Place = field(default_factory=here)

    def work(self, stage: str, take: Take, tell: Tell) -> None:
        """Train what `take` gives and `tell` each run, until nothing is left nor running.

        A branch whose loss is not finite, and one whose process was killed too often, is told with its error;
        other errors are raised. Raises Interrupted when `pressed`, once all in training are saved.
        """
        ended = self.place.train_asked(
            self.project, self.corpus, take, self.workers, stage, self.progress, self.pressed
        )
        for asked, result in ended:
            if isinstance(result, Exception) and not isinstance(result, Failure):
                raise result
            tell(asked, result)
