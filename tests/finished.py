"""What tests read of the session's finished project."""

from __future__ import annotations

from pathlib import Path

from isoflop.records import Corpus
from isoflop.store import Project

BUDGET, LADDER_SHARE, LADDER = "1e12flops", 0.75, "7.5e11flops"  # of the job: about the least

Home = tuple[Project, Corpus, Path]  # the project, its corpus, its final model
