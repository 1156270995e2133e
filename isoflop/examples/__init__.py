"""Examples of a task: files of many formats as a `datasets.Dataset`, whose columns are named by roles."""

from __future__ import annotations

from isoflop.examples.columns import with_roles
from isoflop.examples.media import read_audio
from isoflop.examples.reading import read_examples
from isoflop.examples.splitting import splits_of

__all__ = ["read_audio", "read_examples", "splits_of", "with_roles"]
