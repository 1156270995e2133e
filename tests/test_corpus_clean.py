"""Cleaning, duplicates, the split, tokenizers and the encoder."""

from __future__ import annotations

import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from isoflop.corpus import build_corpus, dedupe, heldout_documents, tokenizer, train_documents, train_tokens
from isoflop.corpus.bpe import byte_alphabet, count_bytes, encoder, end_token, token_type, train_bpe
from isoflop.corpus.clean import PIECE_CHARS, cut
from isoflop.corpus.dedupe import signatures
from isoflop.errors import CorpusError
from isoflop.records import Corpus, CorpusConfig

WORDS = [f"word{n}" for n in range(3000)]


def document(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + "\n"


def build(tmp_path: Path, texts: list[str | bytes], **changes: object) -> Corpus:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03d}.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    config = CorpusConfig(sources=(str(folder),), vocab_size=300).model_copy(update=changes)
    return build_corpus(config, tmp_path / "out", workers=1)


def texts_of(corpus: Corpus) -> list[str]:
    return sorted([*train_documents(corpus), *heldout_documents(corpus)])


def test_filters_count_what_they_drop(tmp_path: Path) -> None:
    good: list[str | bytes] = [document(n) for n in range(10)]
    bad: list[str | bytes] = [
        b"",
        " \n\t ",
        "short",
        "the same line again\n" * 50,
        "\x01\x02\x03\x04\x05text" * 20,
        document(0),
        "other " + document(1),
    ]
    corpus = build(tmp_path, good + bad)
    expected = {"empty": 2, "short": 1, "repeated lines": 1, "control": 1, "duplicate": 1}
    assert corpus.dropped == expected | {"near duplicate": 1}
    assert texts_of(corpus) == sorted(map(str, good))


def test_bad_bytes_are_counted_and_text_is_normalised(tmp_path: Path) -> None:
    text = document(0).encode()
    corpus = build(
        tmp_path,
        [b"\xef\xbb\xbf" + text, document(1) + "cafe\u0301\r\nline", document(2).encode() + b"\xff\xfe!"],
    )
    assert corpus.bad_bytes == 2
    kept = texts_of(corpus)
    assert document(0) in kept
    assert document(1) + "café\nline" in kept
    assert document(2) + "\ufffd\ufffd!" in kept


def test_nothing_left_says_what_was_dropped(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"No document of .* is left: 1 empty, 2 short"):
        build(tmp_path, ["tiny", "  ", "small"])


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="1 document: nothing to hold out") as caught:
        build(tmp_path, [document(0)])
    assert "two documents" in caught.value.hint


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_side_is_empty(tmp_path: Path, share: float) -> None:
    corpus = build(tmp_path, [document(n) for n in range(5)], heldout_share=share)
    assert corpus.heldout_documents == (1 if share == 0 else 4)


@given(st.text(st.sampled_from("ab \n"), max_size=50), st.integers(1, 4000))
@settings(max_examples=25, deadline=None)
def test_cutting_keeps_every_character(text: str, times: int) -> None:
    whole = text * times
    pieces = [*cut(whole)]
    assert "".join(pieces) == whole
    assert all(len(piece) <= PIECE_CHARS for piece in pieces)
    assert [*cut(whole + "more")][: len(pieces) - 1] == pieces[:-1]


@pytest.mark.parametrize("similarity", [0.3, 0.6, 0.8, 0.95])
def test_signatures_estimate_the_jaccard_similarity(similarity: float) -> None:
    size = 4000
    shared = round(2 * size * similarity / (1 + similarity))
    a = [f"s{n}" for n in range(shared)] + [f"a{n}" for n in range(size - shared)]
    b = [f"s{n}" for n in range(shared)] + [f"b{n}" for n in range(size - shared)]
    rows = signatures([" ".join(a), " ".join(b)])
    assert abs((rows[0] == rows[1]).mean() - similarity) < 4 * np.sqrt(similarity * (1 - similarity) / 128)


def test_signatures_do_not_depend_on_the_process() -> None:
    code = (
        "from isoflop.corpus.dedupe import signatures as s; print(s(['one two three four five six']).sum())"
    )
    sums = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert len(sums) == 1


def test_partitions_find_the_same_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str | bytes] = [document(n % 30) + ("extra" if n % 3 else "") for n in range(90)]
    whole = build(tmp_path, texts)
    assert whole.documents == 30
    monkeypatch.setattr(dedupe, "PARTITION_DOCUMENTS", 16)
    monkeypatch.setattr(dedupe, "PAIRS", 8)
    (tmp_path / "texts").rename(tmp_path / "elsewhere")
    (tmp_path / "more").mkdir()
    assert build(tmp_path / "more", texts).hashes == whole.hashes


def test_the_threshold_can_turn_near_duplicates_off(tmp_path: Path) -> None:
    texts: list[str | bytes] = [document(0), document(0) + "!", document(0), document(1)]
    corpus = build(tmp_path, texts, near_duplicate_threshold=1.0)
    assert corpus.dropped == {"duplicate": 1}
    assert corpus.documents == 3


def test_bands_catch_what_is_as_similar_as_the_threshold() -> None:
    assert [dedupe.bands(threshold) for threshold in (0.3, 0.5, 0.8, 0.9, 0.99)] == [2, 4, 8, 8, 32]


MADE = train_bpe(iter([document(n) + "It's naïve: 12½ たこ\n\n  x" for n in range(50)]), 400)
MADE.encode_special_tokens = True  # as `read_tokenizer` does


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_the_encoder_equals_the_tokenizer(text: str) -> None:
    encode = encoder(MADE, np.uint16)
    expected = MADE.encode(text, add_special_tokens=False).ids
    assert np.frombuffer(encode(text), np.uint16).tolist() == expected
    assert count_bytes(MADE)[expected].sum() == len(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "I'll don't 'tis we've  two",
        "\x1c\x1d\x85\xa0 \u3000x \u200b",
        "½²³ Ⅷ 一二 ٣ 𝐀𝟙 😀😀 ʰ",
        "\ufeffa\U0001e5d0",
    ],
)
def test_the_encoder_equals_the_tokenizer_on_odd_characters(text: str) -> None:
    expected = MADE.encode(text * 3, add_special_tokens=False).ids
    assert np.frombuffer(encoder(MADE, np.uint32)(text * 3), np.uint32).tolist() == expected


def test_every_assigned_character_is_split_alike() -> None:
    encode = encoder(MADE, np.uint16)
    for start in (*range(0, 0x3000, 64), *range(0x3000, 0x30000, 512)):
        codes = (code for code in range(start, start + 64) if not 0xD800 <= code < 0xE000)
        text = "".join(f"a{c} {c}1{c}" for c in map(chr, codes) if unicodedata.category(c) != "Cn")
        expected = MADE.encode(text, add_special_tokens=False).ids
        assert np.frombuffer(encode(text), np.uint16).tolist() == expected, hex(start)


def test_special_tokens_in_a_document_are_text(tmp_path: Path) -> None:
    texts: list[str | bytes] = [document(n) + "<|endoftext|> in the middle" for n in range(5)]
    corpus = build(tmp_path, texts)
    end = end_token(tokenizer(corpus))
    assert (train_tokens(corpus)[:] == end).sum() == 5 - corpus.heldout_documents
    assert texts_of(corpus) == sorted(map(str, texts))


def test_token_files_widen_with_the_vocabulary() -> None:
    assert token_type(65_536) is np.uint16
    assert token_type(65_537) is np.uint32


def byte_level(special: list[str], **parts: object) -> Tokenizer:
    made = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(byte_alphabet())}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    for name, part in parts.items():
        setattr(made, name, part)
    return made


@pytest.mark.parametrize(
    ("special", "end"),
    [([], "<|endoftext|>"), (["<s>", "</s>"], "</s>"), (["</s>", "<|endoftext|>"], "<|endoftext|>")],
)
def test_a_given_tokenizer_keeps_its_end(tmp_path: Path, special: list[str], end: str) -> None:
    byte_level(special).save(str(tmp_path / "given.json"))
    corpus = build(tmp_path, [document(n) for n in range(5)], tokenizer=str(tmp_path / "given.json"))
    made = tokenizer(corpus)
    token = end_token(made)
    assert token is not None
    assert made.id_to_token(token) == end
    assert corpus.vocab_size == 256 + max(1, len(special))
    assert corpus.bytes_per_token < 1  # one token a byte, and the ends


def test_the_id_depends_on_the_tokenizers_content(tmp_path: Path) -> None:
    ids = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        byte_level([]).save(str(tmp_path / name / "given.json"))
        texts: list[str | bytes] = [document(n) for n in range(5)]
        ids.add(build(tmp_path / name, texts, tokenizer=str(tmp_path / name / "given.json")).id)
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "does not exist"),
        ("{}", "cannot be read"),
        (Tokenizer(models.WordLevel({"the": 0}, unk_token="the")), "not byte-level: 256 of"),
        (
            byte_level([], normalizer=normalizers.Lowercase(), pre_tokenizer=pre_tokenizers.ByteLevel()),
            "changes the text",
        ),
    ],
)
def test_bad_tokenizers(tmp_path: Path, made: Tokenizer | str | None, message: str) -> None:
    path = tmp_path / "given.json"
    if isinstance(made, str):
        path.write_text(made)
    elif made is not None:
        made.save(str(path))
    with pytest.raises(CorpusError, match=message) as caught:
        build(tmp_path, [document(n) for n in range(5)], tokenizer=str(path))
    assert caught.value.hint


def test_a_vocabulary_too_small_for_the_bytes(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot hold the 256 bytes"):
        build(tmp_path, [document(n) for n in range(5)], vocab_size=256)


def test_importing_the_room_is_light() -> None:
    heavy = {"torch", "loky", "datasets", "pyarrow", "tokenizers", "rensa"}
    code = f"import isoflop.corpus, sys; print({heavy} & {{*sys.modules}})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
