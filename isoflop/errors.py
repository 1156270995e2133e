"""Errors that a user can cause, each one sentence plus a hint.

IsoflopError            (a ValueError; the command line prints it and exits 2)
|-- CorpusError         sources, documents, tokenizer
|-- BudgetError         a budget that cannot be read or cannot buy anything
|-- LadderError         the small runs failed or are too few
|-- FitError            the table or the law
|-- TrainError          a run that cannot start or cannot go on
|-- TrendError          a table of dated facts, a date, a metric, or a growth model
|-- LayoutError         a cluster, or a model that does not fit on it
|-- AdaptError          task data, a base model, or a method that does not fit
|-- ServeError          a server, its keys or its limits
|-- ProjectError        the project folder: ledger, lock, version
`-- CorruptError        a file whose content is not what was written
"""


class IsoflopError(ValueError):
    """A mistake the user can mend: `message` names the thing and the place, `hint` says what to do."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:  # keeps the hint across process borders
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(cls: type[IsoflopError], message: str, hint: str) -> IsoflopError:
    return cls(message, hint=hint)


class CorpusError(IsoflopError):
    """The sources, a document, or the tokenizer cannot be used."""


class BudgetError(IsoflopError):
    """The budget cannot be read, or cannot buy anything."""


class LadderError(IsoflopError):
    """Too few of the ladder's runs succeeded, or none can be afforded."""


class FitError(IsoflopError):
    """The table of runs, or the law asked for, cannot be fitted."""


class TrainError(IsoflopError):
    """A training run cannot start or cannot go on."""


class TrendError(IsoflopError):
    """A table of dated facts, a date or a metric cannot be read, or too few points are left."""


class LayoutError(IsoflopError):
    """An accelerator or a cluster cannot be read, or the model does not fit on it."""


class AdaptError(IsoflopError):
    """Task data cannot be read or learned from, or a base model or a method does not fit the task."""


class ServeError(IsoflopError):
    """A server cannot be as asked, nor a key of it."""


class ProjectError(IsoflopError):
    """The project folder is in use, newer than this program, or not a project."""


class CorruptError(IsoflopError):
    """A file's content differs from what was written (its hash does not match)."""
