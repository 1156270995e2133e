"""Bars and reports of transformers and datasets, which say in the middle of ours what nobody asked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from isoflop.examples.generated import quiet as without_bars


@contextmanager
def quiet() -> Iterator[None]:
    """In this block they say errors alone, and draw no bars; nor do they warn of releases to come."""
    from transformers import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with without_bars(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
