"""Text that a teacher writes, to learn from: sequence-level distillation, whatever the student's tokenizer.

The student is trained on it as on any text (Kim and Rush, arXiv 1606.07947). The teacher starts documents of
its own, or goes on from beginnings of the project's training text, in batches through transformers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from isoflop import flops
from isoflop.corpus import train_documents
from isoflop.corpus.load import sha256
from isoflop.devices import device_for
from isoflop.engines.folder import opened
from isoflop.errors import CorpusError, ProjectError, TrainError
from isoflop.export import load_pretrained
from isoflop.interrupt import Interrupted, heeded
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, ModelConfig, Record, digest
from isoflop.store import Project, disk_errors
from isoflop.transforms import TEACHER, Source, source_of
from isoflop.using import check_finite

LONGEST = 1024  # tokens of a document, of a model that could write further
BATCH = 32  # documents at once
STAGE = "write"


class Manner(NamedTuple):
    """How a teacher writes."""

    tokens: int  # new ones, at least
    prompt_tokens: int = 0  # of training text before them; 0: documents of its own
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    batch: int = BATCH
    seed: int = 0


class Written(Record):
    """A file of JSON lines, `text` each, that a teacher wrote."""

    id: str
    corpus_id: str | None  # of the beginnings; None: there were none
    source: Source
    options: dict[str, Any]
    documents: int
    tokens: int  # new ones, of the teacher's tokenizer
    bytes: int  # of the file
    hash: str  # SHA-256 of the file
    flops: float  # the teacher's, with keys and values kept
    seconds: float


class _Line(NamedTuple):
    text: str
    tokens: int  # new ones
    flops: float
    seconds: float


def write(
    project: Project, corpus: Corpus | None, teacher: Path, out: Path, manner: Manner, *,
    progress: Progress | None = None,
) -> Written:  # fmt: skip
    """Let a causal model folder write to `out`; `corpus` gives the beginnings.

    What was written before an interruption is kept beside `out`, and gone on with: every batch depends on the
    seed and its number alone. `out` appears whole or not at all.

    Raises TrainError for values that cannot be, ProjectError when `out` is another file, CorpusError for
    training text without a beginning long enough, CorruptError for a folder that cannot be read.
    """
    progress = progress or Silent()
    model = load_pretrained(teacher)
    check_finite(model, teacher)
    shape = model.config
    source = source_of(project, TEACHER, teacher)
    _check(manner, min(shape.context, LONGEST), corpus)
    corpus_id = corpus.id if corpus is not None and manner.prompt_tokens else None
    id = digest([source.hash, corpus_id, manner._asdict()])
    done = project.get("written", id, Written)
    if out.exists():
        if done is not None and sha256(out) == done.hash:
            return done
        raise ProjectError(f"{out} exists already", hint="name a new file with --out")
    if not out.absolute().parent.is_dir():
        raise ProjectError(
            f"there is no folder {out.parent} for {out.name}", hint="make it, or check the path"
        )
    writer = _Writer(teacher, shape, corpus if corpus_id else None, manner)
    part = out.with_name(f".{out.name}.{id}.part")
    with disk_errors(f"the text {out}"):
        lines = _finish(writer, part, manner, progress)
        part.replace(out)
    made = Written(
        id=id, corpus_id=corpus_id, source=source, options=manner._asdict(), documents=len(lines),
        tokens=sum(line.tokens for line in lines), bytes=out.stat().st_size, hash=sha256(out),
        flops=sum(line.flops for line in lines), seconds=sum(line.seconds for line in lines),
    )  # fmt: skip
    project.put("written", made)
    return made


def _check(manner: Manner, context: int, corpus: Corpus | None) -> None:
    """Raises TrainError."""
    if manner.tokens <= 0:
        raise TrainError(f"--tokens is {manner.tokens}, and must be above 0", hint="give e.g. --tokens 1M")
    if not 0 <= manner.prompt_tokens < context - 1:
        raise TrainError(
            f"--prompt-tokens is {manner.prompt_tokens}, and a document has {context} tokens at most",
            hint="give fewer",
        )
    if not (manner.temperature > 0 and 0 < manner.top_p <= 1 and manner.top_k >= 0 and manner.batch > 0):
        raise TrainError(
            f"a temperature of {manner.temperature:g}, a top-p of {manner.top_p:g}, a top-k of "
            f"{manner.top_k} and batches of {manner.batch} cannot all be",
            hint="give a temperature above 0, and a top-p above 0 up to 1",
        )
    if manner.prompt_tokens and corpus is None:
        raise TrainError("beginnings need training text", hint="leave out --prompt-tokens, or name a project")


def _finish(writer: _Writer, part: Path, manner: Manner, progress: Progress) -> list[_Line]:
    """Write until there are enough tokens, from where the file of whole batches ends."""
    lines = _whole_batches(part, manner.batch)
    new = sum(line.tokens for line in lines)
    with heeded(progress) as pressed:
        progress.start(STAGE, manner.tokens, "tokens")
        with part.open("a") as file:
            for number in count(len(lines) // manner.batch):
                if new >= manner.tokens:
                    break
                batch = writer.batch(number)
                file.writelines(json.dumps(line._asdict()) + "\n" for line in batch)
                file.flush()
                lines += batch
                new += sum(line.tokens for line in batch)
                progress.update(STAGE, new)
                if pressed():
                    raise Interrupted
    progress.finish(STAGE, f"{len(lines):,} documents")
    return lines


def _whole_batches(part: Path, batch: int) -> list[_Line]:
    """What is there already; a batch that was cut off is cut away."""
    if not part.exists():
        return []
    texts = part.read_text().splitlines(keepends=True)
    whole = [text for text in texts if text.endswith("\n")]
    whole = whole[: len(whole) // batch * batch]
    part.write_text("".join(whole))
    return [_Line(**json.loads(text)) for text in whole]


class _Writer:
    """The teacher, and what it goes on from. Raises CorpusError, CorruptError or TrainError."""

    def __init__(self, teacher: Path, shape: ModelConfig, corpus: Corpus | None, manner: Manner) -> None:
        model, self.tokenizer = opened(teacher)
        self.model = model.to(device_for())
        self.shape, self.manner = shape, manner
        ends = self.model.generation_config.eos_token_id
        self.ends = [ends] if isinstance(ends, int) else list(ends or [])
        start = self.model.generation_config.bos_token_id
        self.start = [start] if start is not None else self.ends[:1]
        if not self.start and corpus is None:
            raise TrainError(
                f"{teacher} names no token that begins a text", hint="give beginnings: --prompt-tokens 32"
            )
        self.prompts = None if corpus is None else _beginnings(corpus, self.tokenizer, manner.prompt_tokens)
        self.drawn = 0  # of the prompts

    def batch(self, number: int) -> list[_Line]:
        """Documents of a batch, all computed to the length of the longest."""
        began, rows = time.perf_counter(), self._rows(number)
        ids = torch.tensor(rows, device=self.model.device)
        limit = min(self.shape.context, LONGEST) - ids.shape[1]
        draw = np.random.SeedSequence((self.manner.seed, number)).generate_state(1, np.uint64)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(int(draw[0]))
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=True,
                temperature=self.manner.temperature, top_k=self.manner.top_k, top_p=self.manner.top_p,
                pad_token_id=self.ends[0] if self.ends else None,
            )  # fmt: skip
        written = [self._cut(row[ids.shape[1] :]) for row in out.tolist()]
        read = out.shape[1] - 1  # the last one is not
        paid = read * self._flops(read)
        seconds = (time.perf_counter() - began) / len(rows)
        return [
            _Line(self.tokenizer.decode([*row[len(self.start) :], *new]), len(new), paid, seconds)
            for row, new in zip(rows, written, strict=True)
        ]

    def _rows(self, number: int) -> list[list[int]]:
        """What each document of a batch begins with; all of one length."""
        size = self.manner.batch
        if self.prompts is None:
            return [self.start] * size
        for _ in islice(self.prompts, number * size - self.drawn):
            pass
        self.drawn = (number + 1) * size
        return [[*self.start, *ids] for ids in islice(self.prompts, size)]

    def _cut(self, ids: list[int]) -> list[int]:
        """Up to the end of the text."""
        return ids[: next((i for i, token in enumerate(ids) if token in self.ends), len(ids))]

    def _flops(self, length: int) -> float:
        """A token, of a text of that length: it looks back on half of it, on average."""
        return flops.forward_flops_per_token(self.shape.model_copy(update={"context": (length + 1) // 2}))


def _beginnings(corpus: Corpus, tokenizer: Tokenizer, tokens: int) -> Iterator[list[int]]:
    """The first tokens of each training document that has enough, then the next ones, and so on.

    Raises CorpusError when there are none left.
    """
    for turn in count():
        found = False
        for text in train_documents(corpus):
            ids = tokenizer.encode(text, add_special_tokens=False).ids[turn * tokens :][:tokens]
            if len(ids) == tokens:
                found = True
                yield ids
        if not found:
            raise CorpusError(
                f"the documents of corpus {corpus.id} have no {tokens} tokens more to begin with",
                hint="give fewer --prompt-tokens, or fewer --tokens",
            )
