"""Building, finding again, resuming and loading a corpus."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from isoflop.corpus import (
    build_corpus,
    heldout_documents,
    heldout_tokens,
    load_corpus,
    pack,
    sources,
    token_bytes,
    tokenizer,
    train_documents,
    train_tokens,
    vocab_for,
)
from isoflop.errors import CorpusError, CorruptError
from isoflop.progress import Silent
from isoflop.records import Corpus, CorpusConfig

SMALL = CorpusConfig(vocab_size=300)


def prose(seed: int, words: int = 400) -> str:
    """Made-up sentences, different for every seed."""
    draw = random.Random(seed)
    made = ["".join(draw.choices("abcdeéioun", k=draw.randint(2, 9))) for _ in range(words)]
    return "".join(word + draw.choice((" ", " ", ", ", ".\n", "\n\n")) for word in made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty documents in a folder."""
    made = tmp_path / "texts"
    made.mkdir()
    for number in range(60):
        (made / f"{number:02d}.txt").write_text(prose(number))
    return made


def config_of(folder: Path) -> CorpusConfig:
    return SMALL.model_copy(update={"sources": (str(folder),)})


def test_counts_are_exact_and_the_text_comes_back(folder: Path, tmp_path: Path) -> None:
    corpus = build_corpus(config_of(folder), tmp_path / "out")
    sizes = token_bytes(corpus)
    assert sizes.shape == (corpus.vocab_size,) == (300,)
    assert sizes[train_tokens(corpus)[:]].sum() == corpus.train_bytes
    assert sizes[heldout_tokens(corpus)[:]].sum() == corpus.heldout_bytes
    assert len(train_tokens(corpus)) == corpus.train_tokens
    assert train_tokens(corpus).dtype == np.uint16
    texts = [*train_documents(corpus), *heldout_documents(corpus)]
    assert sorted(texts) == sorted(path.read_text() for path in folder.iterdir())
    assert corpus.documents == 60
    assert corpus.heldout_documents == len([*heldout_documents(corpus)]) >= 1
    assert corpus.bytes == corpus.train_bytes + corpus.heldout_bytes == corpus.raw_bytes
    assert corpus.bytes_per_token == corpus.heldout_bytes / corpus.heldout_tokens
    end = tokenizer(corpus).token_to_id("<|endoftext|>")
    assert (train_tokens(corpus)[:] == end).sum() == 60 - corpus.heldout_documents
    assert train_tokens(corpus)[-1:] == end
    assert not (tmp_path / "out" / ".stages" / corpus.id).exists()
    assert [*(tmp_path / "out" / ".stages").iterdir()] == []


def test_a_second_call_does_nothing(folder: Path, tmp_path: Path) -> None:
    class Fails(Silent):
        def start(self, stage: str, total: float, unit: str = "") -> None:
            raise AssertionError(stage)

    corpus = build_corpus(config_of(folder), tmp_path / "out")
    began = time.monotonic()
    assert build_corpus(config_of(folder), tmp_path / "out", progress=Fails()) == corpus
    assert time.monotonic() - began < 1


def test_the_id_depends_on_content_alone(folder: Path, tmp_path: Path) -> None:
    corpus = build_corpus(config_of(folder), tmp_path / "out")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert build_corpus(config_of(folder), tmp_path / "out") == corpus
    moved = folder.rename(tmp_path / "elsewhere")
    again = build_corpus(config_of(moved), tmp_path / "other")
    assert (again.id, again.hashes) == (corpus.id, corpus.hashes)
    (moved / "00.txt").write_text(prose(1000))
    assert build_corpus(config_of(moved), tmp_path / "other").id != corpus.id
    assert build_corpus(config_of(moved).model_copy(update={"seed": 1}), tmp_path / "other").id != again.id


def test_processes_give_the_same_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "long.txt").write_text("".join(map(prose, range(100, 140))))
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(pack, "BLOCK_BYTES", 1 << 16)
    one = build_corpus(config_of(folder), tmp_path / "one", workers=1)
    two = build_corpus(config_of(folder), tmp_path / "two", workers=2)
    assert one.hashes == two.hashes


def test_sides_never_change_when_the_corpus_grows(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder).model_copy(update={"heldout_share": 0.3})
    before = build_corpus(config, tmp_path / "out")
    for number in range(60, 90):
        (folder / f"{number:02d}.txt").write_text(prose(number))
    after = build_corpus(config, tmp_path / "out")
    assert after.documents == 90
    assert {*heldout_documents(before)} <= {*heldout_documents(after)}
    assert {*train_documents(before)} <= {*train_documents(after)}
    assert 0.1 < after.heldout_documents / after.documents < 0.5


def test_one_long_file_is_cut_and_split(tmp_path: Path) -> None:
    text = "".join(map(prose, range(150)))
    (tmp_path / "one.txt").write_text(text)
    corpus = build_corpus(config_of(tmp_path / "one.txt"), tmp_path / "out")
    pieces = [*train_documents(corpus), *heldout_documents(corpus)]
    assert corpus.heldout_documents >= 1
    assert sum(map(len, pieces)) == len(text)
    assert all(len(piece) <= 1 << 16 and piece in text for piece in pieces)


class Stops(Silent):
    """Ends the build when a stage begins."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def start(self, stage: str, total: float, unit: str = "") -> None:
        if stage == self._stage:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["dedupe", "tokenizer", "pack"])
def test_a_stopped_build_goes_on(folder: Path, tmp_path: Path, stage: str) -> None:
    whole = build_corpus(config_of(folder), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build_corpus(config_of(folder), tmp_path / "out", progress=Stops(stage))
    assert not (tmp_path / "out" / whole.id).exists()
    (cleaned,) = (tmp_path / "out" / ".stages").glob("*/clean/*.txt")
    os.utime(cleaned, (1, 1))
    with pytest.raises(KeyboardInterrupt):
        build_corpus(config_of(folder), tmp_path / "out", progress=Stops(stage))
    assert cleaned.stat().st_mtime == 1  # not written again
    assert build_corpus(config_of(folder), tmp_path / "out").hashes == whole.hashes


KILLED = """
import sys, time
from pathlib import Path
from isoflop.corpus import build_corpus
from isoflop.progress import Silent
from isoflop.records import CorpusConfig

class Waits(Silent):
    def update(self, stage, done, note=""):
        if stage == "pack":
            print("packing", flush=True)
            time.sleep(60)

build_corpus(CorpusConfig.from_json(sys.argv[1]), Path(sys.argv[2]), progress=Waits())
"""


def test_a_killed_build_goes_on(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder)
    command = [sys.executable, "-c", KILLED, config.to_json(), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"packing\n"
        process.send_signal(signal.SIGKILL)
    assert not [*(tmp_path / "out").glob("*/corpus.json")]
    corpus = build_corpus(config, tmp_path / "out")
    assert load_corpus(corpus.folder, verify=True) == corpus


def test_a_script_needs_no_main_guard(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "long.txt").write_text("".join(map(prose, range(100, 120))))
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from isoflop.corpus import build_corpus, sources\n"
        "from isoflop.records import CorpusConfig\n"
        "sources.BLOCK_BYTES = 1 << 14\n"
        f"config = CorpusConfig(sources=({str(folder)!r},), vocab_size=300)\n"
        f"print(build_corpus(config, Path({str(tmp_path / 'out')!r}), workers=2).documents)\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 60
    assert ran.stderr == ""


def test_a_full_disk_leaves_nothing_behind_and_the_build_goes_on(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build_corpus(config_of(folder), root, progress=Stops("pack"))
    (stage,) = (path for path in (root / ".stages").iterdir() if path.is_dir())
    (stage / "final").mkdir()
    (stage / "final" / "train.bin").symlink_to("/dev/full")
    with pytest.raises(CorpusError, match=r"disk of .* is full") as caught:
        build_corpus(config_of(folder), root)
    assert "goes on" in caught.value.hint
    assert not [path for path in root.iterdir() if not path.name.startswith(".")]
    (stage / "final" / "train.bin").unlink()
    load_corpus(build_corpus(config_of(folder), root).folder, verify=True)


def test_loading_checks_files(folder: Path, tmp_path: Path) -> None:
    corpus = build_corpus(config_of(folder), tmp_path / "out")
    moved = corpus.folder.rename(tmp_path / "moved")
    assert load_corpus(moved, verify=True) == corpus.model_copy(update={"folder": moved})
    assert str(tmp_path) not in json.loads((moved / "corpus.json").read_text())["folder"]

    data = bytearray((moved / "train.bin").read_bytes())
    data[10] ^= 1
    (moved / "train.bin").write_bytes(data)
    load_corpus(moved)
    with pytest.raises(CorruptError, match=rf"train\.bin has SHA-256 \w+, not {corpus.hashes['train.bin']}"):
        load_corpus(moved, verify=True)
    (moved / "train.bin").write_bytes(data[:-2])
    with pytest.raises(CorruptError, match=r"train\.bin has \d+ bytes, not \d+"):
        load_corpus(moved)
    (moved / "train.bin").unlink()
    with pytest.raises(CorruptError, match=r"train\.bin is missing"):
        load_corpus(moved)
    (moved / "corpus.json").write_text("{}")
    with pytest.raises(CorruptError, match="not a corpus record"):
        load_corpus(moved)
    with pytest.raises(CorpusError, match="holds no corpus"):
        load_corpus(tmp_path)


def test_the_record_survives_json(folder: Path, tmp_path: Path) -> None:
    corpus = build_corpus(config_of(folder), tmp_path / "out")
    assert Corpus.from_json(corpus.to_json()) == corpus


def test_vocabulary_grows_with_the_budget() -> None:
    sizes = [vocab_for(10.0**power) for power in range(6, 27)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (512, 65_536)
    assert all(size & (size - 1) == 0 for size in sizes)
    assert vocab_for(None) == 4096
