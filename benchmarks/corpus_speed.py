"""Speed and memory of the corpus stage: raw text to packed tokens, on text folded from real files.

    python benchmarks/corpus_speed.py --mb 2000 --record records/DATE_corpus-speed

The text is the standard library's source, copied until it has the size asked for. In every copy one
word in four is replaced by itself with a number, so that no copy is a near duplicate of another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from isoflop.corpus import build_corpus
from isoflop.corpus.sources import find_files
from isoflop.progress import Live
from isoflop.records import CorpusConfig

WORD = re.compile(r"\b[A-Za-z]{4,}\b")
CHANGED_SHARE = 0.25


def main() -> None:
    """Generate, build, print the figures as JSON, and record them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mb", type=float, default=100, help="raw text, in millions of bytes")
    parser.add_argument("--tokenizer", help="an existing tokenizer.json; by default one is trained first")
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    parser.add_argument("--record", type=Path, help="folder for README.md and result.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "text", int(options.mb * 1e6))
        tokenizer = options.tokenizer or str(
            build_corpus(CorpusConfig(), folder / "first").folder / "tokenizer.json"
        )
        result = measure(folder, tokenizer, options.workers)
    print(json.dumps(result, indent=1))
    if options.record:
        write_record(options.record, result)


def generate(folder: Path, size: int) -> None:
    """Write at least `size` bytes of perturbed copies, one file each."""
    folder.mkdir()
    originals = [Path(file.path).read_text(errors="replace") for file in find_files(())]
    written, copy = 0, 0
    while written < size:
        draw = random.Random(copy)
        for number, text in enumerate(originals):
            if written >= size:
                return
            data = text if copy == 0 else WORD.sub(lambda word: _changed(word[0], draw), text)  # noqa: B023
            written += (folder / f"{copy:03d}-{number:05d}.py").write_bytes(data.encode(errors="replace"))
        copy += 1


def _changed(word: str, draw: random.Random) -> str:
    return f"{word}{draw.randrange(1000)}" if draw.random() < CHANGED_SHARE else word


def measure(folder: Path, tokenizer: str, workers: int | None) -> dict[str, Any]:
    """Build and watch: MB/s of wall and of processor time, and the peak memory of all processes."""
    load = os.getloadavg()[0]
    watch = _Watch()
    stages = _Stages()
    config = CorpusConfig(sources=(str(folder / "text"),), tokenizer=tokenizer)
    began, used = time.monotonic(), _processor_seconds()
    with watch:
        corpus = build_corpus(config, folder / "out", progress=stages, workers=workers)
    seconds, used = time.monotonic() - began, _processor_seconds() - used
    again = time.monotonic()
    build_corpus(config, folder / "out", workers=workers)
    return {
        "raw_mb": corpus.raw_bytes / 1e6,
        "seconds": seconds,
        "mb_per_second": corpus.raw_bytes / 1e6 / seconds,
        "processor_seconds": used,
        "mb_per_processor_second": corpus.raw_bytes / 1e6 / used,
        "stage_seconds": stages.seconds,
        "peak_rss_mb": watch.peak_rss / 1e6,
        "peak_pss_mb": watch.peak_pss / 1e6,
        "again_seconds": time.monotonic() - again,
        "documents": corpus.documents,
        "tokens": corpus.train_tokens + corpus.heldout_tokens,
        "dropped": corpus.dropped,
        "cores": os.cpu_count(),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "command": "python " + " ".join(sys.argv),
    }


def _processor_seconds() -> float:
    """User and system time of this process and its finished children."""
    return sum(os.times()[:4])


class _Watch(threading.Thread):
    """Samples the memory of this process and its children; pages shared by several count once in PSS."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_rss = self.peak_pss = 0
        self._done = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        this = psutil.Process()
        while not self._done.wait(0.2):
            rss = pss = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    memory = process.memory_full_info()
                except psutil.Error:
                    continue
                rss, pss = rss + memory.rss, pss + memory.pss
            self.peak_rss, self.peak_pss = max(self.peak_rss, rss), max(self.peak_pss, pss)


class _Stages:
    """Progress that keeps each stage's seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def start(self, stage: str, total: float, unit: str = "") -> None:
        self.seconds[stage] = -time.monotonic()

    def update(self, stage: str, done: float, note: str = "") -> None: ...

    def finish(self, stage: str, note: str = "") -> None:
        self.seconds[stage] += time.monotonic()

    def log(self, message: str) -> None: ...

    def live(self, point: Live) -> None: ...


def write_record(folder: Path, result: dict[str, Any]) -> None:
    """Keep the figures with the command and the machine's load."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "README.md").write_text(
        "# Speed and memory of the corpus stage\n\n"
        f"`{result['command']}` on {result['cores']} cores ({result['processor']}, Python "
        f"{result['python']}), load {result['load_before']:.1f} before and {result['load_after']:.1f} "
        "after.\n\n"
        f"- {result['raw_mb']:,.0f} MB of raw text to packed tokens in {result['seconds']:,.1f} s: "
        f"{result['mb_per_second']:.1f} MB/s, "
        f"and {result['mb_per_processor_second']:.1f} MB per second of one core's time\n"
        f"- peak memory of all processes: {result['peak_rss_mb']:,.0f} MB resident, "
        f"{result['peak_pss_mb']:,.0f} MB with shared pages counted once\n"
        f"- a second call: {result['again_seconds']:.2f} s\n"
    )


if __name__ == "__main__":
    main()
