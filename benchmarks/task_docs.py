"""Data of the tasks' benchmark that is made of documentation here: speech, pairs, questions, summaries.

    python benchmarks/task_docs.py DATA

Speech is synthetic (espeak-ng reads sentences of the standard library's docstrings aloud; sox makes the
noise), and so is the form of the questions. Pairs and questions are of docstrings, summaries of the manual
pages that are installed.
"""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from task_data import Counts, describe, write_lines, write_table

STDLIB = Path(sysconfig.get_paths()["stdlib"])
NOT_READ = {"test", "tests", "idlelib", "site-packages", "lib2to3", "turtledemo", "__pycache__"}
PYTHON = "PSF License Version 2 (docstrings of Python's standard library)"

SPEECHES = 1500  # sentences
RATE = 16_000  # samples a second
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-us+f2", "en-gb+m3", "en-us+f4")
SPEEDS = (140, 175, 210)  # words a minute
DECIBELS = (0, 5, 10)  # signal over noise
NOISE_SECONDS = 60

ENTRIES = 4  # of a module that a question's context holds
PAGES = 3000  # manual pages
SUITE = 100  # of them at most whose names begin with the same word
PAGE_CHARACTERS = 2000


class Entry(NamedTuple):
    """A function or class with a docstring."""

    module: str
    name: str
    heading: str  # as documentation prints it: name and parameters
    doc: str

    @property
    def says(self) -> str:
        """The first sentence of its docstring, in one line."""
        first = self.doc.split("\n\n")[0]
        return " ".join(re.split(r"(?<=[.!?])\s", " ".join(first.split()), maxsplit=1)[0].split())

    @property
    def is_told(self) -> bool:
        """Whether that is a sentence, and not an example or a word or two."""
        return self.says[0].isalpha() and len(self.says.split()) > 3


# -- docstrings ---------------------------------------------------------------------------------------


def entries(folder: Path = STDLIB) -> Iterator[Entry]:
    """Public functions and classes with a docstring, by module, in the order of the files."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if NOT_READ & set(parts) or any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        yield from _defined(module, ast.parse(path.read_bytes()).body)


def _defined(module: str, body: Sequence[ast.stmt], owner: str = "") -> Iterator[Entry]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        name = f"{owner}{node.name}"
        if doc := ast.get_docstring(node):
            words = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            yield Entry(module, name, name + words, doc)
        if isinstance(node, ast.ClassDef):
            yield from _defined(module, node.body, f"{name}.")


def words_of_name(name: str) -> str:
    """splitext_of -> splitext of; parseHeader -> parse header."""
    last = name.rpartition(".")[2]
    return " ".join(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower().replace("_", " ").split())


def names(out: Path) -> Counts:
    """What a docstring says, and the words of the name that it is the docstring of."""
    found: dict[str, str] = {}
    for entry in entries():
        words = words_of_name(entry.name)
        if len(words.split()) > 1 and entry.is_told:
            found.setdefault(entry.says, words)
    once = {words: says for says, words in found.items()}  # a name stands for one text, or it were no answer
    write_lines(out / "names.jsonl", ({"first": says, "second": words} for words, says in once.items()))
    shared = sum(bool(set(words.split()) & set(says.lower().split())) for words, says in once.items())
    return describe(
        out, "Docstrings and names", "Python's standard library, as installed here", PYTHON,
        "The first sentence of a docstring belongs with the name of its function or class, split into "
        "words. Names of one word are left out. All pairs are of texts that belong together.",
        {"pairs": len(once), "that share a word": shared},
    )  # fmt: skip


def questions(out: Path) -> Counts:
    """What does NAME do? The context has entries of its module; the answer is the first sentence of its."""
    modules: dict[str, list[Entry]] = {}
    for entry in entries():
        if entry.is_told:
            modules.setdefault(entry.module, []).append(entry)
    rows = []
    for group in (some[i : i + ENTRIES] for some in modules.values() for i in range(0, len(some), ENTRIES)):
        parts = [f"{entry.heading}\n{' '.join(entry.doc.split())}" for entry in group]
        context = "\n\n".join(parts)
        for number, entry in enumerate(group):
            start = sum(len(part) + 2 for part in parts[:number]) + len(entry.heading) + 1
            assert context.startswith(entry.says, start)
            answers = {"text": [entry.says], "answer_start": [start]}
            rows.append({"question": f"What does {entry.name} do?", "context": context, "answers": answers})
    write_lines(out / "questions.jsonl", rows)
    return describe(
        out, "Questions on docstrings", "Python's standard library, as installed here", PYTHON,
        f"A context is up to {ENTRIES} entries of a module as documentation prints them. The question names "
        "one of them; the answer is the first sentence of its docstring, as it stands there. All questions "
        "have one form: this measures finding an entry and where its first sentence ends, and nothing "
        "else. Questions on one context may lie in different splits.",
        {"questions": len(rows), "modules": len(modules)},
    )  # fmt: skip


# -- manual pages -------------------------------------------------------------------------------------


def page_of(text: str) -> tuple[str, str] | None:
    """Body and summary of a page as `man` prints it; None without a NAME line or a description."""
    parts = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    sections = {head.strip(): " ".join(body.split()) for head, _, body in (p.partition("\n") for p in parts)}
    names, dash, summary = re.sub(r"\s[-–—]{1,2}\s", "\0", sections.get("NAME", ""), count=1).partition("\0")
    body = sections.get("DESCRIPTION", "")
    told = len(summary.split()) < 3 or summary.lower() in body.lower()  # nothing is to be summed up
    if not dash or not names or told or len(body) < 2 * len(summary):
        return None
    return body[:PAGE_CHARACTERS], summary


def pages(out: Path, folder: Path = Path("/usr/share/man/man1")) -> Counts:
    """The DESCRIPTION of a manual page, and what its NAME line says of it."""
    files = [path for path in sorted(folder.glob("*.1*")) if not path.is_symlink()]
    random.Random(0).shuffle(files)
    suites: Counter[str] = Counter()
    found: dict[str, str] = {}
    for path in files:
        suite = re.split(r"[-_.]", path.name)[0]
        if suites[suite] == SUITE or suites.total() == PAGES:
            continue
        suites[suite] += 1
        shown = subprocess.run(
            ["man", "--no-hyphenation", "--no-justification", "-E", "UTF-8", "-P", "cat", "-l", path],
            capture_output=True, text=True, errors="replace", env=os.environ | {"MANWIDTH": "100"},
        )  # fmt: skip
        if (pair := page_of(shown.stdout)) is not None:
            found.setdefault(*pair)
    once = {summary: body for body, summary in found.items()}
    write_lines(out / "pages.jsonl", ({"document": body, "summary": says} for says, body in once.items()))
    return describe(
        out, "Manual pages and their NAME lines", "manual pages of section 1 that are installed here",
        "that of each page's package (/usr/share/doc/*/copyright): free software, of many licences.",
        f"Of {len(files):,} pages {PAGES:,} at most, in random order, and {SUITE} of those whose names "
        f"begin with the same word; a document is the first {PAGE_CHARACTERS:,} characters of a page's "
        "DESCRIPTION, its summary the NAME line without the name. Pages without either, and those whose "
        "DESCRIPTION holds the summary word for word, are left out.",
        {"pages": len(once)},
    )  # fmt: skip


# -- speech -------------------------------------------------------------------------------------------


def sentences() -> list[str]:
    """Sentences of plain words, 5 to 12 of them, each once."""
    texts = (" ".join(entry.doc.split()) for entry in entries())
    found = (sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s", text))
    plain = re.compile(r"[A-Z][a-z]+(?:,? [a-z]+){4,11}\.")
    return list(dict.fromkeys(filter(plain.fullmatch, found)))


def mixed(speech: NDArray[np.float64], noise: NDArray[np.float64], decibels: float) -> NDArray[np.float64]:
    """(samples,) of speech with noise of so much less power, the whole within [-1, 1]."""
    power = np.mean(speech**2) / np.mean(noise**2) / 10 ** (decibels / 10)
    whole = speech + np.sqrt(power) * noise
    return np.asarray(whole / max(1.0, float(np.abs(whole).max())))


def speech(out: Path) -> Counts:
    """Sentences read aloud by several voices at several speeds, with noise; metadata.csv has their texts."""
    draw = random.Random(0)
    said = sentences()
    draw.shuffle(said)
    (out / "sounds").mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        raw, clean = Path(folder, "raw.wav"), Path(folder, "clean.wav")
        shape = ["-r", str(RATE), "-c", "1", "-b", "16"]
        subprocess.run(["sox", "-R", "-n", *shape, raw, "synth", str(NOISE_SECONDS), "pinknoise"], check=True)
        noise = samples_of(raw)
        for number, text in enumerate(said[:SPEECHES]):
            voice, speed, decibels = draw.choice(VOICES), draw.choice(SPEEDS), draw.choice(DECIBELS)
            subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-w", raw, text], check=True)
            subprocess.run(["sox", raw, *shape, clean, "rate"], check=True)
            spoken = samples_of(clean)
            at = draw.randrange(len(noise) - len(spoken))
            name = f"sounds/{number:05}.wav"
            write_sound(out / name, mixed(spoken, noise[at : at + len(spoken)], decibels))
            rows.append((name, text, voice, speed, decibels))
    write_table(out / "metadata.csv", ("file_name", "text", "voice", "speed", "decibels"), rows)
    return describe(
        out, "Synthetic speech with noise",
        "sentences of the docstrings of Python's standard library, read by espeak-ng", PYTHON,
        f"Speech is synthetic: {len(VOICES)} voices at {', '.join(map(str, SPEEDS))} words a minute. Pink "
        f"noise of sox is {', '.join(map(str, DECIBELS))} dB below it (power of the whole sentence). WAV, "
        "16 bits, "
        f"{RATE:,} samples a second. Each sentence is there once.", {"sounds": len(rows)},
    )  # fmt: skip


def samples_of(path: Path) -> NDArray[np.float64]:
    """Of a sound of 16 bits and one channel."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768


def write_sound(path: Path, samples: NDArray[np.float64]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


# Name of the data -> the programs that it takes, and what makes it.
MAKERS: dict[str, tuple[tuple[str, ...], Callable[[Path], Counts]]] = {
    "names": ((), names),
    "questions": ((), questions),
    "pages": (("man",), pages),
    "speech": (("espeak-ng", "sox"), speech),
}


def main() -> None:
    """Make what is missing, as far as its programs are installed."""
    data = Path(sys.argv[1])
    for name, (programs, make) in MAKERS.items():
        missing = [program for program in programs if not shutil.which(program)]
        if (data / name / "README.md").exists():
            print(f"{name}: is there")
        elif missing:
            print(f"{name}: left out, {', '.join(missing)} is not installed")
        else:
            print(f"{name}: {make(data / name)}", flush=True)


if __name__ == "__main__":
    main()
