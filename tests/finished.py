"""What tests read of the session's finished project."""

from __future__ import annotations

from pathlib import Path

from isoflop.records import Corpus
from isoflop.store import Project

Home = tuple[Project, Corpus, Path]  # the project, its corpus, its final model
