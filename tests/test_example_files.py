"""Files of examples, of every format: what is read, what is left out, and what is no data at all."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polib
import pytest
import soundfile
import zstandard
from datasets import Dataset, DatasetDict
from PIL import Image

from isoflop.errors import AdaptError
from isoflop.examples import read_audio, read_examples, with_roles
from isoflop.tasks.classification import LABEL, TEXT
from isoflop.tasks.media import image_of

ROWS = [
    {"text": "good, “really”\nso", "label": "007"},
    {"text": "NA", "label": "None"},
    {"text": "", "label": "x"},
]


def read(*sources: Path) -> tuple[list[dict[str, Any]], list[str]]:
    notes: list[str] = []
    found = read_examples(sources, notes=notes)
    assert list(found) == ["train"]
    return found["train"].to_list(), notes


def table(path: Path, rows: list[dict[str, Any]], sep: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=sep)
        writer.writeheader()
        writer.writerows(rows)
    return path


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_tables(tmp_path: Path) -> None:
    """A label is what is written, "NA" is a text, and a name may hold what patterns of files hold."""
    assert read(table(tmp_path / "a [1]*.csv", ROWS)) == (ROWS, [])
    assert read(table(tmp_path / "a.tsv", ROWS, "\t")) == (ROWS, [])
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a [1]*.csv").read_bytes()))
    assert read(tmp_path / "a.csv.gz") == (ROWS, [])
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    assert read(tmp_path / "a.json") == (ROWS, [])
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    assert read(tmp_path / "a.jsonl") == (ROWS, [])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    assert read(tmp_path / "a.jsonl.gz") == (ROWS, [])
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines(ROWS)))
    assert read(tmp_path / "a.jsonl.zst") == (ROWS, [])
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == (ROWS, [])
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert read(tmp_path / "a.txt") == ([{"text": "one"}, {"text": "two"}], [])


def test_a_long_text_is_no_error(tmp_path: Path) -> None:
    rows = [{"text": "word " * 40_000, "label": "x"}]
    assert read(table(tmp_path / "a.csv", rows))[0] == rows


def test_a_column_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "indexed.csv"
    path.write_text("\ufeff,text\n0,a\n1,b\n")
    assert read(path)[0] == [{"Unnamed: 0": "0", "text": "a"}, {"Unnamed: 0": "1", "text": "b"}]


def test_several_sources_are_one(tmp_path: Path) -> None:
    first, second = table(tmp_path / "a.csv", ROWS[:1]), table(tmp_path / "b.tsv", ROWS[1:], "\t")
    assert read(first, second)[0] == ROWS
    other = table(tmp_path / "c.csv", [{"words": "x", "label": "y"}])
    with pytest.raises(AdaptError, match=r"columns of .*a.csv, .*c.csv differ: label, text; label, words"):
        read_examples([first, other])


def test_names_of_files_say_splits(tmp_path: Path) -> None:
    for name in ("reviews-train.csv", "reviews_dev.csv", "reviews.test.csv"):
        table(tmp_path / name, ROWS)
    found = read_examples([tmp_path])
    assert {split: len(rows) for split, rows in found.items()} == {"train": 3, "validation": 3, "test": 3}
    alone = read_examples([tmp_path / "reviews.test.csv"])
    assert list(alone) == ["train"]
    two = read_examples([tmp_path / "reviews-train.csv", tmp_path / "reviews.test.csv"])
    assert list(two) == ["train", "test"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.csv",
            b"text,label\nx,y\nx,y,z\n",
            "cannot be read as .csv: .*Expected 2 fields in line 3, saw 3",
        ),
        ("a.csv", b"text,label\nx,y,z\nx,y,z\n", "its first row has 3 fields, and 2 are named"),
        ("a.csv", b"text,text\nx,y\n", "its first line names columns twice"),
        ("a.csv", b"", "its first line names no column"),
        ("a.csv", "text,label\nschön,y\n".encode("latin-1"), "can't decode byte"),
        ("a.csv", b"text,label\n", "it has no row below its names"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "cannot be read as .jsonl"),
        ("a.parquet", b"PAR1 no", "cannot be read as .parquet"),
        ("a.csv.gz", b"no gzip", "cannot be read as .csv"),
        ("a.docx", b"x", "is of no format that holds examples"),
        ("a.mo", b"no catalogue", "1 of 1 files of .* cannot be read: a.mo"),
        ("a.tmx", b"<tmx><body>", "1 of 1 files of .* cannot be read: a.tmx"),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdaptError, match=says) as caught:
        read_examples([tmp_path / name])
    assert "\n" not in caught.value.message


def test_places_without_data(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="nowhere does not exist"):
        read_examples([tmp_path / "nowhere"])
    with pytest.raises(AdaptError, match="holds no examples"):
        read_examples([tmp_path])


def test_saved_datasets(tmp_path: Path) -> None:
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == (ROWS, [])
    DatasetDict({"all": rows}).save_to_disk(tmp_path / "named")
    assert read(tmp_path / "named") == (ROWS, [])
    DatasetDict({"train": rows, "dev": rows, "extra": rows}).save_to_disk(tmp_path / "many")
    notes: list[str] = []
    found = read_examples([tmp_path / "many"], notes=notes)
    assert list(found) == ["train", "validation"]
    assert notes == [f"the splits extra of {tmp_path / 'many'} are left out"]
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(AdaptError, match="one is no saved dataset"):
        read_examples([tmp_path / "one"])


def files(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_of_texts(tmp_path: Path) -> None:
    """Mails have no suffix, or one of their own; what is about them is none."""
    mails = {
        "ham/0001.ea7e79": b"Hello\n", "ham/more/0002.b3120c": "schön".encode("latin-1"),
        "spam/0001.acf2": b"\xef\xbb\xbfBuy", "spam/.hidden": b"x", "README.md": b"x", "stray": b"x",
    }  # fmt: skip
    rows, notes = read(files(tmp_path, mails))
    assert rows == [
        {"text": "Hello\n", "label": "ham"}, {"text": "sch�n", "label": "ham"},
        {"text": "Buy", "label": "spam"},
    ]  # fmt: skip
    assert notes == [
        f"1 files of {tmp_path} lie in no class's folder and are left out",
        f"1 texts of {tmp_path} are not UTF-8: bytes that are none were replaced",
    ]


def test_txt_files_alone_are_texts_where_there_are_some(tmp_path: Path) -> None:
    rows, _ = read(files(tmp_path, {"a/1.txt": b"x", "a/1.html": b"y", "b/2.txt": b"z"}))
    assert rows == [{"text": "x", "label": "a"}, {"text": "z", "label": "b"}]


def test_folders_that_are_splits(tmp_path: Path) -> None:
    parts = {f"{split}/{label}/1.txt": b"x" for split in ("train", "test") for label in ("a", "b")}
    found = read_examples([files(tmp_path / "whole", parts)])
    assert {split: rows["label"] for split, rows in found.items()} == {
        "train": ["a", "b"],
        "test": ["a", "b"],
    }
    flat = {"train/rows.csv": b"text,label\nx,y\n", "val/rows.csv": b"text,label\nz,y\n"}
    assert list(read_examples([files(tmp_path / "flat", flat)])) == ["train", "validation"]


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(path)


def test_images_by_class(tmp_path: Path) -> None:
    """Broken ones are named and left out below a tenth, and an error above it; a JPEG cut short is broken."""
    for i in range(20):
        picture(tmp_path / "cat" / f"{i:02}.JPG", i)
        picture(tmp_path / "dog" / f"{i:02}.png", i)
    whole = (tmp_path / "cat" / "00.JPG").read_bytes()
    (tmp_path / "cat" / "00.JPG").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "notes.doc").write_bytes(b"x")
    notes: list[str] = []
    rows = read_examples([tmp_path], notes=notes)["train"]
    assert notes == [f"1 of 40 files of {tmp_path} cannot be read and are left out: 00.JPG"]
    assert rows["label"] == ["cat"] * 19 + ["dog"] * 20
    assert image_of(rows[38]["image"], 3)[0, 0].tolist() == [19, 19, 19]
    assert image_of(rows[38]["image"], 3).shape == (6, 5, 3)
    for i in range(1, 5):
        (tmp_path / "dog" / f"{i:02}.png").write_bytes(b"no image")
    with pytest.raises(
        AdaptError, match=r"5 of 40 files of .* cannot be read: 00.JPG, 01.png, 02.png \.\.\."
    ):
        read_examples([tmp_path])


def test_images_of_a_table(tmp_path: Path) -> None:
    """Paths are relative to the table; a text may name a file without being one."""
    for i in range(2):
        picture(tmp_path / "pictures" / f"{i}.png", i)
    told = [
        {"file_name": f"pictures/{i}.png", "text": text, "label": i}
        for i, text in enumerate(("see a.png", "a cat"))
    ]
    table(tmp_path / "metadata.csv", told)
    rows = read_examples([tmp_path])["train"]
    assert rows.column_names == ["image", "text", "label"]
    assert [image_of(image, 3)[0, 0, 0] for image in rows["image"]] == [0, 1]
    rows.save_to_disk(tmp_path / "saved")
    saved = read_examples([tmp_path / "saved"])["train"]
    assert image_of(saved[1]["image"], 3).tolist() == image_of(rows[1]["image"], 3).tolist()
    table(tmp_path / "metadata.csv", [{"image": "gone.png", "label": 1}])
    with pytest.raises(AdaptError, match=r"1 of 1 files of .*metadata.csv cannot be read: gone.png"):
        read_examples([tmp_path / "metadata.csv"])


def tone(path: Path, rate: int = 8000, hertz: float = 440, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(rate // 2) / rate)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate)


def test_sounds_with_texts_beside_them(tmp_path: Path) -> None:
    for i in range(11):
        tone(tmp_path / f"{i:02}.wav")
        (tmp_path / f"{i:02}.txt").write_text(f"words {i}\n")
    tone(tmp_path / "untold.flac")
    (tmp_path / "00.wav").write_bytes(b"RIFF")
    rows, notes = read(tmp_path)
    assert rows[0] == {"audio": str(tmp_path / "01.wav"), "text": "words 1"}
    assert len(rows) == 10
    assert notes == [
        f"1 sounds of {tmp_path} have no .txt beside them",
        f"1 of 11 files of {tmp_path} cannot be read and are left out: 00.wav",
    ]


def test_sounds_of_a_table(tmp_path: Path) -> None:
    tone(tmp_path / "clips" / "a.wav")
    table(tmp_path / "metadata.csv", [{"file_name": "clips/a.wav", "transcription": "hello"}])
    rows, _ = read(tmp_path)
    assert rows == [{"audio": str(tmp_path / "clips" / "a.wav"), "transcription": "hello"}]


def test_sounds_held_by_the_rows(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    held = {"bytes": (tmp_path / "a.wav").read_bytes(), "path": "a.wav"}
    made = Dataset.from_list([{"audio": held, "text": "hi"}])
    made.cast_column("audio", datasets.Audio(decode=False)).to_parquet(tmp_path / "a.parquet")
    rows, _ = read(tmp_path / "a.parquet")
    assert np.array_equal(read_audio(rows[0]["audio"], 8000), read_audio(tmp_path / "a.wav", 8000))


def test_sounds_of_another_rate_are_resampled(tmp_path: Path) -> None:
    """A tone keeps its pitch, its length and its height; two channels become one."""
    tone(tmp_path / "a.wav", rate=22050, hertz=1000, channels=2)
    samples = read_audio(tmp_path / "a.wav", 16000)
    assert samples.dtype == np.float32
    assert samples.shape == (8000,)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.fft.rfftfreq(len(samples), 1 / 16000)[spectrum.argmax()] == pytest.approx(1000, abs=2)
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)
    same = read_audio(tmp_path / "a.wav", 22050)
    assert np.array_equal(same, soundfile.read(tmp_path / "a.wav", dtype="float32")[0].mean(axis=1))


def test_sounds_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    with pytest.raises(AdaptError, match=r"a.wav cannot be read"):
        read_audio(tmp_path / "a.wav", 16000)


def test_catalogues(tmp_path: Path) -> None:
    """Plural forms and what is not translated are left out; what was read from .mo is what polib wrote."""
    catalogue = polib.POFile()
    catalogue.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    catalogue.append(polib.POEntry(msgid="Save", msgstr="Speichern"))
    catalogue.append(polib.POEntry(msgid="Open", msgstr="Öffnen", msgctxt="menu"))
    catalogue.append(polib.POEntry(msgid="Later", msgstr=" "))
    plural = {0: "%d Datei", 1: "%d Dateien"}
    catalogue.append(polib.POEntry(msgid="%d file", msgid_plural="%d files", msgstr_plural=plural))
    (tmp_path / "de" / "LC_MESSAGES").mkdir(parents=True)
    for i in range(10):
        catalogue.save_as_mofile(str(tmp_path / "de" / "LC_MESSAGES" / f"{i}.mo"))
    (tmp_path / "de" / "LC_MESSAGES" / "0.mo").write_bytes(b"broken")
    rows, notes = read(tmp_path)
    assert len(rows) == 18
    assert sorted(rows[:2], key=str) == [
        {"source": "Open", "target": "Öffnen"}, {"source": "Save", "target": "Speichern"}
    ]  # fmt: skip
    assert notes == [
        f"1 of 10 files of {tmp_path} cannot be read and are left out: 0.mo",
        f"18 messages of {tmp_path} have no translation, or plural forms, and are left out",
    ]


TMX = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE tmx SYSTEM "http://localhost:9/tmx14.dtd"{entity}>
<tmx version="1.4"><header srclang="en-US"/><body>
<tu><tuv xml:lang="de"><seg>Guten Tag</seg></tuv><tuv xml:lang="EN-US"><seg>Good day</seg></tuv></tu>
<tu><tuv xml:lang="en-us"><seg>a <bpt i="1">&lt;b&gt;</bpt><hi>bold</hi><ept i="1">x</ept> word</seg></tuv>
<tuv xml:lang="fr"><seg>non</seg></tuv><tuv xml:lang="de"><seg>ein {word}</seg></tuv></tu>
<tu><tuv xml:lang="en-US"><seg>only</seg></tuv><tuv xml:lang="fr"><seg>seulement</seg></tuv></tu>
</body></tmx>"""


def test_translation_memories(tmp_path: Path) -> None:
    """Whatever the order of the languages; codes of formatting are no text."""
    (tmp_path / "a.tmx").write_text(TMX.format(entity="", word="Wort"))
    expected = [
        {"source": "Good day", "target": "Guten Tag"}, {"source": "a bold word", "target": "ein Wort"}
    ]  # fmt: skip
    rows, notes = read(tmp_path / "a.tmx")
    assert rows == expected
    assert notes == [
        f"1 messages of {tmp_path / 'a.tmx'} have no translation, or plural forms, and are left out"
    ]
    (tmp_path / "a.tmx.gz").write_bytes(gzip.compress((tmp_path / "a.tmx").read_bytes()))
    assert read(tmp_path / "a.tmx.gz")[0] == expected


def test_a_translation_memory_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entity = f' [<!ENTITY word SYSTEM "{(tmp_path / "secret").as_uri()}">]'
    (tmp_path / "a.tmx").write_text(TMX.format(entity=entity, word="&word;"))
    with pytest.raises(AdaptError, match=r"1 of 1 files of .*a.tmx cannot be read"):
        read_examples([tmp_path / "a.tmx"])


def test_a_folder_keeps_what_was_read(tmp_path: Path) -> None:
    """In the folder that is named, not where `datasets` keeps its own; a file that changed is read again."""
    path = table(tmp_path / "a.csv", ROWS)
    kept = tmp_path / "kept"
    assert read_examples([path], cache=kept)["train"].cache_files[0]["filename"].startswith(str(kept))
    table(path, ROWS[:1])
    assert read_examples([path], cache=kept)["train"].to_list() == ROWS[:1]


def test_what_is_read_goes_on_to_roles(tmp_path: Path) -> None:
    notes: list[str] = []
    rows, columns = with_roles(
        read_examples([table(tmp_path / "a.csv", ROWS)], notes=notes)["train"], (TEXT, LABEL), notes=notes
    )
    assert columns == {"text": "text", "label": "label"}
    assert rows.to_list() == ROWS[:2]
    assert notes == ["1 of 3 rows have no text and are left out"]
