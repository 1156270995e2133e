"""isoflop: a compute budget in, the best language model it buys out, with the measured law that says why.

    import isoflop
    result = isoflop.run(["docs/"], budget="5m", project="my-project")

Everything is loaded when first used: `import isoflop` itself stays light and free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.budget import Budget
    from isoflop.corpus import build_corpus, load_corpus
    from isoflop.errors import IsoflopError
    from isoflop.laws import Fit, Observations, fit
    from isoflop.pipeline import run
    from isoflop.report import write_report
    from isoflop.store import Project

__version__ = "0.1.0"

_HOMES = {
    "Budget": "budget",
    "Fit": "laws",
    "IsoflopError": "errors",
    "Observations": "laws",
    "Project": "store",
    "build_corpus": "corpus",
    "fit": "laws",
    "load_corpus": "corpus",
    "run": "pipeline",
    "write_report": "report",
}

__all__ = [
    "Budget",
    "Fit",
    "IsoflopError",
    "Observations",
    "Project",
    "build_corpus",
    "fit",
    "load_corpus",
    "run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'isoflop' has no attribute {name!r}")
    return getattr(import_module(f"isoflop.{_HOMES[name]}"), name)
