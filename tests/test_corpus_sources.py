"""Every kind of source, good and bad."""

from __future__ import annotations

import gzip
import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from isoflop.corpus import build_corpus, heldout_documents, reading, sources, train_documents
from isoflop.corpus.sources import File, Part, find_files, to_units
from isoflop.errors import CorpusError
from isoflop.records import Corpus, CorpusConfig

TEXTS = [f"Document {n} says {n * n} things, {'and more ' * (n % 7)}of number {n**3}." for n in range(40)]
LOOSE = CorpusConfig(vocab_size=280, near_duplicate_threshold=1.0)


def build(tmp_path: Path, *names: str | Path, **changes: object) -> Corpus:
    config = LOOSE.model_copy(update={"sources": tuple(map(str, names)), **changes})
    return build_corpus(config, tmp_path / "out", workers=1)


def texts_of(corpus: Corpus) -> list[str]:
    return sorted([*train_documents(corpus), *heldout_documents(corpus)])


def failure(tmp_path: Path, *names: str | Path, **changes: object) -> CorpusError:
    with pytest.raises(CorpusError) as caught:
        build(tmp_path, *names, **changes)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def jsonl(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({field: text, "id": 1}) + "\n" for text in texts).encode()


def test_structured_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[:10]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS[10:20])))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(jsonl(TEXTS[20:30])))
    pq.write_table(pa.table({"n": range(10), "text": TEXTS[30:]}), tmp_path / "d.parquet", row_group_size=3)
    corpus = build(tmp_path, tmp_path)
    assert texts_of(corpus) == sorted(TEXTS)


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"body": TEXTS})
    made.save_to_disk(tmp_path / "plain", num_shards=2)
    assert texts_of(build(tmp_path, tmp_path / "plain", field="body")) == sorted(TEXTS)
    datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(tmp_path / "splits")
    assert build(tmp_path, tmp_path / "splits", field="body").documents == 40
    datasets.DatasetDict(test=made).save_to_disk(tmp_path / "other")
    assert "no split named train, but test" in failure(tmp_path, tmp_path / "other").message
    assert 'no field "text"; there are: body' in failure(tmp_path, tmp_path / "plain").message


def test_text_files_and_globs(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.md").write_text(TEXTS[0])
    (tmp_path / "deep" / "b.py").write_text(TEXTS[1])
    (tmp_path / "deep" / "c.rst").write_text(TEXTS[2])
    (tmp_path / "deep" / "d.1.gz").write_bytes(gzip.compress(TEXTS[3].encode()))
    (tmp_path / "deep" / ".hidden.txt").write_text(TEXTS[4])
    (tmp_path / "deep" / "__pycache__").mkdir()
    (tmp_path / "deep" / "__pycache__" / "x.py").write_text(TEXTS[5])
    (tmp_path / "deep" / "broken.txt").symlink_to("nowhere")
    assert texts_of(build(tmp_path, tmp_path / "deep")) == sorted(TEXTS[:2])
    found = build(tmp_path, tmp_path / "deep", f"{tmp_path}/deep/*.rst", tmp_path / "deep" / "d.1.gz")
    assert texts_of(found) == sorted(TEXTS[:4])
    assert build(tmp_path, f"{tmp_path}/**/*.md", tmp_path / "deep" / "b.py").documents == 2


def test_no_source_means_the_standard_library() -> None:
    files = find_files(())
    root = sysconfig.get_path("stdlib")
    assert len(files) > 500
    assert all(file.path.startswith(root) and file.path.endswith(".py") for file in files)
    assert not any("site-packages" in file.path or "__pycache__" in file.path for file in files)


@pytest.mark.parametrize("line", [b"short \xc3\xa9 line\n", b"\xe3\x81\x82" * 40_000])
def test_parts_of_a_file_lose_and_repeat_nothing(
    tmp_path: Path, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = line * (1_500_000 // len(line))
    (tmp_path / "long.txt").write_bytes(data)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 200_001)
    units = to_units(find_files((str(tmp_path / "long.txt"),)))
    assert len(units) > 5
    blocks = [block for unit in units for part in unit for block in reading.text_blocks(part)]
    assert b"".join(blocks) == data
    assert "".join(block.decode() for block in blocks) == data.decode()  # no character is cut
    monkeypatch.setattr(reading, "BLOCK_BYTES", 200_001)
    assert b"".join(reading.text_blocks(Part(File(str(tmp_path / "long.txt"), "text")))) == data


def test_parts_of_tables_lose_and_repeat_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[:20]))
    pq.write_table(pa.table({"text": TEXTS[20:]}), tmp_path / "b.parquet", row_group_size=4)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 150)
    assert texts_of(build(tmp_path, tmp_path)) == sorted(TEXTS)


def test_missing_sources(tmp_path: Path) -> None:
    assert f"{tmp_path}/none.txt does not exist" in failure(tmp_path, tmp_path / "none.txt").message
    assert "matches no file" in failure(tmp_path, f"{tmp_path}/*.txt").message
    (tmp_path / "empty").mkdir()
    assert "holds no file of a known type" in failure(tmp_path, tmp_path / "empty").message


def test_a_data_set_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    error = failure(tmp_path, "someone/something")
    assert "someone/something is no path here and cannot be loaded" in error.message
    assert "no route to the hub" in error.message


def test_a_data_set_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, subset: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, subset, split, streaming))
        return [{"text": text} for text in TEXTS]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts_of(build(tmp_path, "someone/something:part")) == sorted(TEXTS)
    assert asked == [("someone/something", "part", "train", True)]


def test_binary_files(tmp_path: Path) -> None:
    binary = tmp_path / "texts" / "binary.txt"
    binary.parent.mkdir()
    binary.write_bytes(bytes(range(256)) * 100)
    assert "binary.txt is a binary file" in failure(tmp_path, binary).message
    assert "1 binary" in failure(tmp_path, binary.parent).message
    for number in range(3):
        (binary.parent / f"{number}.txt").write_text(TEXTS[number])
    assert build(tmp_path, binary.parent).dropped == {"binary": 1, "duplicate": 0}


def test_bad_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(TEXTS) + b"{broken\n" + jsonl(TEXTS))
    assert "a.jsonl, line 41: this is not JSON" in failure(tmp_path, path).message
    for size in (100, 150, 999):
        monkeypatch.setattr(sources, "BLOCK_BYTES", size)
        assert "a.jsonl, line 41: this is not JSON" in failure(tmp_path, path).message
    path.write_bytes(jsonl(TEXTS) + b"\n[1]\n")
    assert "a.jsonl, line 42: this is not a JSON object but a list" in failure(tmp_path, path).message


def test_missing_fields(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS, "body"))
    error = failure(tmp_path, tmp_path / "a.jsonl")
    assert 'a.jsonl has no field "text"; there are: body, id.' in error.message
    pq.write_table(pa.table({"n": [1, 2], "body": TEXTS[:2]}), tmp_path / "b.parquet")
    error = failure(tmp_path, tmp_path / "b.parquet")
    assert 'b.parquet has no field "text"; there are: n, body.' in error.message
    assert "holds int, not text" in failure(tmp_path, tmp_path / "b.parquet", field="n").message


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not what its name says" * 10)
    assert f"{name} cannot be read" in failure(tmp_path, tmp_path / name).message


def test_a_truncated_archive(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(TEXTS))[:-20])
    assert "a.jsonl.gz cannot be read" in failure(tmp_path, tmp_path / "a.jsonl.gz").message
