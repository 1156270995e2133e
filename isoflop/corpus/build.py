"""Sources to a corpus folder, stage by stage; each stage's files are kept until the last succeeds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock

from isoflop.corpus import bpe
from isoflop.corpus.clean import CleanTask, clean_unit
from isoflop.corpus.dedupe import INDEX, drop_duplicates
from isoflop.corpus.load import load_corpus, sha256
from isoflop.corpus.pack import SIDES, join, pack, pack_tasks
from isoflop.corpus.sources import File, find_files, to_units
from isoflop.corpus.split import TRAIN, write_sides
from isoflop.errors import CorpusError
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, CorpusConfig

FORMAT = 2  # raise it when the same input gives other tokens
SAMPLE_BYTES = 16 << 20  # of training text for the tokenizer; up to 4 times that for large vocabularies

Task = TypeVar("Task")
Result = TypeVar("Result")


def build_corpus(
    config: CorpusConfig, root: Path, *, progress: Progress | None = None, workers: int | None = None
) -> Corpus:
    """Build the corpus of `config` in `root/<id>/`, or return its record when it is there already.

    The id depends on the documents' content and the config, not on where the sources lie. A build
    that was killed goes on where it stopped. `workers` is the number of processes, by default one a
    core. Raises `CorpusError` for sources or a tokenizer that cannot be used and for a full disk.
    """
    files = find_files(config.sources)
    key = _key(config, files)
    stage, lock, known = root / ".stages" / key, root / ".stages" / f"{key}.lock", root / ".known" / key
    if corpus := _known(root, known):
        return corpus
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        known.parent.mkdir(exist_ok=True)
        with FileLock(lock):
            if corpus := _known(root, known):  # another process built it meanwhile
                return corpus
            stage.mkdir(exist_ok=True)
            corpus = _Build(config, root, stage, progress or Silent(), workers).run(files)
            known.write_text(corpus.id)
            shutil.rmtree(stage)
            lock.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CorpusError(
            f"The disk of {root} is full.", hint="Free some space and start again: the build goes on."
        ) from error
    return corpus


def _known(root: Path, known: Path) -> Corpus | None:
    """The corpus that these files gave before."""
    if not known.is_file() or not (root / known.read_text() / "corpus.json").is_file():
        return None
    return load_corpus(root / known.read_text(), verify=True)


@dataclass(frozen=True)
class _Build:
    """One build: the stages in order."""

    config: CorpusConfig
    root: Path
    stage: Path
    progress: Progress
    workers: int | None

    def run(self, files: list[File]) -> Corpus:
        began = time.monotonic()
        stems, counts, identity = self._clean(files)
        target = self.root / identity
        if (target / "corpus.json").is_file():
            return load_corpus(target)
        flags, duplicates = drop_duplicates(stems, self.config, self.stage, self.progress)
        dropped = {name.removeprefix("dropped:"): n for name, n in counts.items() if ":" in name} | duplicates
        self._require_documents(counts["documents"] - sum(duplicates.values()), dropped)
        write_sides(stems, flags, self.config)
        tokenizer = self._tokenizer(stems)
        outputs, packed = self._pack(stems, tokenizer)

        final = self.stage / "final"
        final.mkdir(exist_ok=True)
        hashes = {f"{side}.bin": join(outputs, side, final / f"{side}.bin") for side in SIDES}
        shutil.copyfile(tokenizer, final / "tokenizer.json")
        hashes["tokenizer.json"] = sha256(tokenizer)
        corpus = Corpus(
            id=identity,
            folder=Path(),
            config=self.config,
            documents=packed["train_documents"] + packed["heldout_documents"],
            bytes=packed["train_bytes"] + packed["heldout_bytes"],
            raw_bytes=counts["raw_bytes"],
            train_tokens=packed["train_tokens"],
            heldout_tokens=packed["heldout_tokens"],
            train_bytes=packed["train_bytes"],
            heldout_bytes=packed["heldout_bytes"],
            heldout_documents=packed["heldout_documents"],
            vocab_size=len(bpe.count_bytes(bpe.read_tokenizer(tokenizer))),
            bytes_per_token=packed["heldout_bytes"] / packed["heldout_tokens"],
            dropped=dropped,
            bad_bytes=counts["bad_bytes"],
            hashes=hashes,
            seconds=time.monotonic() - began,
        )
        (final / "corpus.json").write_text(corpus.to_json())
        os.replace(final, target)
        return load_corpus(target)

    def _clean(self, files: list[File]) -> tuple[list[str], Counter[str], str]:
        """Stems of the cleaned units, their counts in sum, and the corpus's id."""
        units = to_units(files)
        folder = self.stage / "clean"
        folder.mkdir(exist_ok=True)
        names = [_digest([astuple(part) for part in unit])[:16] for unit in units]
        tasks = [
            CleanTask(unit, self.config, str(folder / name)) for unit, name in zip(units, names, strict=True)
        ]
        self.progress.start("read", sum(file.size for file in files), "bytes")
        counts: Counter[str] = Counter()
        identities = [""] * len(tasks)
        for number, summary in self._each(clean_unit, tasks):
            identities[number] = str(summary.pop("identity"))
            counts.update({name: int(value) for name, value in summary.items()})
            self.progress.update("read", counts["raw_bytes"])
        self.progress.finish("read", f"{counts['documents']:,} documents")
        identity = _digest([FORMAT, _content(self.config), identities])[:16]
        return [task.stem for task in tasks], counts, identity

    def _require_documents(self, kept: int, dropped: dict[str, int]) -> None:
        if kept == 0:
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none was read"
            raise CorpusError(
                f"No document of {', '.join(self.config.sources)} is left: {reasons}.",
                hint="Name other sources, or relax min_chars or max_repeated_line_share.",
            )

    def _tokenizer(self, stems: list[str]) -> Path:
        """The tokenizer of the corpus as a file in the stage folder."""
        path = self.stage / "tokenizer.json"
        if path.is_file():
            return path
        partial = self.stage / "tokenizer.partial"
        if self.config.tokenizer is not None:
            given = bpe.read_tokenizer(Path(self.config.tokenizer))
            end = bpe.end_token(given)
            assert end is not None
            self.progress.log(f"Documents end with the tokenizer's {given.id_to_token(end)}.")
            given.save(str(partial))
        else:
            size = self.config.vocab_size or bpe.vocab_for(None)
            self.progress.start("tokenizer", 1)
            bpe.train_bpe(_sample(stems, SAMPLE_BYTES * min(max(1, size // 16_384), 4)), size).save(
                str(partial)
            )
            self.progress.finish("tokenizer", f"{size:,} tokens")
        os.replace(partial, path)
        return path

    def _pack(self, stems: list[str], tokenizer: Path) -> tuple[list[str], Counter[str]]:
        """The packed runs' paths, in order, and their counts in sum."""
        folder = self.stage / "packed"
        folder.mkdir(exist_ok=True)
        tasks = [task for n, stem in enumerate(stems) for task in pack_tasks(stem, n, tokenizer, folder)]
        total: Counter[str] = Counter()
        self.progress.start("pack", sum(Path(f"{stem}.txt").stat().st_size for stem in stems), "bytes")
        for _, counts in self._each(pack, tasks):
            total.update(counts)
            self.progress.update("pack", total["train_bytes"] + total["heldout_bytes"])
        self.progress.finish("pack", f"{total['train_tokens']:,} tokens")
        return [task.output for task in tasks], total

    def _each(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Result]]:
        """`(index of the task, result)` as the tasks finish in the build's processes."""
        from loky.process_executor import TerminatedWorkerError

        from isoflop.workers import cores, stream

        try:
            yield from stream(function, tasks, self.workers or cores())
        except TerminatedWorkerError as error:
            raise CorpusError(
                "A worker process ended unexpectedly.",
                hint="The machine may be short of memory: use fewer workers. The build goes on.",
            ) from error


def _sample(stems: list[str], size: int) -> Iterator[str]:
    """Training documents of about `size` bytes in all, chosen by the second half of their hash."""
    total = 0
    for stem in stems:
        index, sides = np.fromfile(f"{stem}.index", INDEX), np.fromfile(f"{stem}.sides", np.uint8)
        total += int(index["bytes"][sides == TRAIN].sum())
    limit = min(size / total, 1.0) * 2.0**64
    for stem in stems:
        index, sides = np.fromfile(f"{stem}.index", INDEX), np.fromfile(f"{stem}.sides", np.uint8)
        lengths = index["bytes"].astype(np.int64)
        offsets = np.cumsum(lengths) - lengths
        with open(f"{stem}.txt", "rb") as text:
            for row in np.flatnonzero((sides == TRAIN) & (index["sample"] < limit)):
                text.seek(offsets[row])
                yield text.read(lengths[row]).decode()


def _key(config: CorpusConfig, files: list[File]) -> str:
    """Name of this build on this machine: changes when a file's path, size or time does."""
    return _digest([FORMAT, _content(config), config.sources, [astuple(file) for file in files]])[:16]


def _content(config: CorpusConfig) -> dict[str, object]:
    """The config without the places of things: what, with the documents, determines the corpus."""
    tokenizer = config.tokenizer
    if tokenizer is not None:
        if not Path(tokenizer).is_file():
            raise CorpusError(f"The tokenizer {tokenizer} does not exist.", hint="Check the path.")
        tokenizer = sha256(Path(tokenizer))
    return {**config.model_dump(exclude={"sources"}), "tokenizer": tokenizer}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
