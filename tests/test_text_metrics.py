"""Metrics of texts, answers and transcripts against the libraries that define them, and known examples."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from test_metrics import value

from isoflop.metrics import METRICS, compared, scored
from isoflop.metrics.speech import spoken

ENGLISH = ["The cat sat on the mat.", "A dog barked loudly, at the man!", "It rains in Spain.", "", "No."]
FOUND = ["The cat sat on a mat .", "The dog barked at the man", "It rains, mainly in Spain.", "So?", ""]
CHINESE = ["猫坐在垫子上。", "西班牙在下雨。", "对象的名称"]
FOUND_ZH = ["猫在垫子上坐。", "西班牙下雨了。", "对象名称"]


@pytest.mark.parametrize(
    ("name", "tokenize", "found", "true"),
    [
        ("bleu", "13a", FOUND, ENGLISH),
        ("bleu_zh", "zh", FOUND_ZH, CHINESE),
        ("bleu", "13a", ENGLISH, ENGLISH),
    ],
)
def test_bleu_is_the_corpus_score(name: str, tokenize: str, found: list[str], true: list[str]) -> None:
    expected = sacrebleu.BLEU(tokenize=tokenize)
    assert value(name, found, true) == pytest.approx(expected.corpus_score(found, [true]).score, abs=1e-12)
    assert METRICS[name].says == str(expected.get_signature())


def test_chrf_is_the_corpus_score() -> None:
    expected = sacrebleu.CHRF()
    for found, true in ((FOUND, ENGLISH), (FOUND_ZH, CHINESE)):
        assert value("chrf", found, true) == pytest.approx(expected.corpus_score(found, [true]).score)
    assert METRICS["chrf"].says == str(expected.get_signature())


def test_words_of_chinese_are_seen_by_its_tokenizer_alone() -> None:
    long = ["猫坐在垫子上看着窗外的雨", "今天天气很好我们去公园散步"]
    near = ["猫坐在垫子上看着外面的雨", "今天天气很好我们去公园走走"]
    assert value("bleu", near, long) == 0
    assert value("bleu_zh", near, long) > 50


def test_a_resample_of_bleu_is_the_corpus_of_its_texts() -> None:
    metric = METRICS["bleu"]
    rows = metric.statistics(FOUND, ENGLISH)
    drawn = [0, 0, 1, 2, 2]
    expected = sacrebleu.corpus_bleu([FOUND[i] for i in drawn], [[ENGLISH[i] for i in drawn]]).score
    assert metric.value(rows[drawn].sum(0, keepdims=True))[0] == pytest.approx(expected)


def test_intervals_and_pairs_of_texts() -> None:
    for name in ("bleu", "chrf", "rouge_l", "wer", "token_f1"):
        score = scored(METRICS[name], FOUND * 5, ENGLISH * 5, resamples=200)
        assert score.low < score.value < score.high
        assert score.says == METRICS[name].says
        better = compared(METRICS[name], FOUND * 5, ENGLISH * 5, ENGLISH * 5, resamples=200)
        assert better.p_better == 1


def test_rouge() -> None:
    """The example of rouge_score's own page; then its mean over texts."""
    true, found = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    assert value("rouge_1", [found], [true]) == pytest.approx(2 * 0.75 * (6 / 9) / (0.75 + 6 / 9))
    assert value("rouge_l", [found], [true]) == pytest.approx(2 * 0.625 * (5 / 9) / (0.625 + 5 / 9))
    for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        scorer = RougeScorer([kind])
        each = [scorer.score(r, p)[kind].fmeasure for p, r in zip(FOUND, ENGLISH, strict=True)]
        assert value(name, FOUND, ENGLISH) == pytest.approx(np.mean(each))


def test_rouge_knows_words_beyond_ascii() -> None:
    assert value("rouge_1", ["für Öl"], ["fur ol"]) == 0
    assert value("rouge_1", ["Für Öl"], ["für öl"]) == 1
    assert value("rouge_1", ["对象名称abc"], ["对象 abc"]) == pytest.approx(2 * 3 / (5 + 3))


@given(st.lists(st.text("ab '.,A", max_size=12), min_size=1, max_size=6))
@settings(max_examples=60)
def test_error_rates_of_a_whole_are_jiwers(texts: list[str]) -> None:
    true = ["Say it, now!"] * len(texts)
    said, heard = [spoken(text) for text in true], [spoken(text) for text in texts]
    assert value("wer", texts, true) == pytest.approx(jiwer.wer(said, heard))
    assert value("cer", texts, true) == pytest.approx(jiwer.cer(said, heard))


def test_error_rates() -> None:
    assert value("cer", ["sitting"], ["kitten"]) == 3 / 6
    assert value("wer", ["THE CAT, sat!"], ["the cat sat"]) == 0
    assert value("wer", ["the the cat"], ["the cat sat"]) == pytest.approx(2 / 3)
    assert value("wer", ["", "a"], ["", "a b"]) == 0.5
    assert spoken("“Don’t  stop”—he\tsaid，好。") == "dont stophe said好"


@pytest.mark.parametrize(
    ("found", "right", "exact", "f1"),
    [
        ("The Denver Broncos!", ["Denver Broncos", "Broncos"], 1, 1),
        ("in 1903, Paris", ["1903"], 0, 0.5),
        ("a cat", "the dog", 0, 0),
        ("cat cat dog", ["cat dog dog"], 0, 2 / 3),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("the", ["a"], 1, 1),
    ],
)
def test_answers_in_the_form_of_squad(found: str, right: list[str] | str, exact: float, f1: float) -> None:
    assert value("exact_match", [found], [right]) == exact
    assert value("token_f1", [found], [right]) == pytest.approx(f1)
