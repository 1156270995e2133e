"""Questions to models in their engines, checked against direct computation."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from finished import Home
from tokenizers import Tokenizer

from isoflop.corpus import build_corpus, end_token, heldout_documents, heldout_tokens, token_bytes, tokenizer
from isoflop.engines import open_engine
from isoflop.engines.reading import continued, token_nats
from isoflop.errors import CorpusError, ProjectError
from isoflop.evaluate import heldout_windows
from isoflop.export import load_pretrained, save_pretrained
from isoflop.gpt import GPT
from isoflop.progress import Silent
from isoflop.recipe import shape
from isoflop.records import CorpusConfig
from isoflop.scoring import KIND, Evaluation, evaluated
from isoflop.scoring.asking import Asking, Questions
from isoflop.scoring.completions import completions, is_python, parses
from isoflop.scoring.documents import by_document
from isoflop.scoring.ensemble import compare
from isoflop.scoring.robustness import robustness
from isoflop.store import Project


@pytest.fixture(scope="module")
def other(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same tokenizer, untrained and with a shorter context."""
    folder = tmp_path_factory.mktemp("other") / "untrained"
    torch.manual_seed(1)
    save_pretrained(GPT(shape(32, home[1].vocab_size, n_layers=1, context=32)), home[1], folder)
    return folder


def nats_of(model: Any, ids: list[int]) -> float:
    """Sum of the losses of all of these tokens but the first, in one window."""
    if len(ids) < 2:
        return 0.0
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0].double()
    return float(F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))


def test_documents_are_scored_alone_and_each_token_once(home: Home) -> None:
    corpus, model = home[1], load_pretrained(home[2])
    with open_engine(home[2]) as engine:
        found = by_document(engine, corpus, eval_tokens=6000)
        context = engine.context
    texts = {hashlib.sha256(text.encode()).hexdigest()[:16]: text for text in heldout_documents(corpus)}
    assert found.documents == len(texts) == corpus.heldout_documents
    assert found.tokens == sum(d.tokens for d in found.scored) <= 6000
    assert [d.perplexity for d in found.scored] == sorted((d.perplexity for d in found.scored), reverse=True)
    end, shortest = end_token(corpus), min(found.scored, key=lambda d: d.tokens)
    ids = [end, *tokenizer(corpus).encode(texts[shortest.hash]).ids, end]
    windows = [ids[s : s + context + 1] for s in range(0, len(ids) - 1, context)]
    nats = sum(nats_of(model, window) for window in windows)
    assert shortest.tokens == len(ids) - 1
    assert shortest.bytes == len(texts[shortest.hash].encode())
    assert shortest.loss == pytest.approx(nats / shortest.tokens, rel=1e-4)
    assert shortest.bpb == pytest.approx(nats / math.log(2) / shortest.bytes, rel=1e-4)
    assert found.loss == pytest.approx(sum(d.loss * d.tokens for d in found.scored) / found.tokens)
    low, *_, high = found.quantiles_perplexity.values()
    assert low <= math.exp(found.loss) <= high or len(found.scored) < 3


@pytest.mark.parametrize(
    ("before", "after", "fine"),
    [
        ("x = 1", "\ny = 2\nz = ", True),  # the last line is not whole
        ("x = 1", "\ny = (2,\nz\n", False),  # nothing but an open bracket: no whole line of code is left
        ("x = 1", "\na = 1\ny = (2,\nz\n", True),
        ("x = 1", "\ny = = 2\nz = 3\n", False),
        ("x = 1", "\ny = 2\nz z\nw", False),  # a mistake is not cut away
        ("x = 1", "\n\n# nothing\n", False),
        ("def f():", "\n    return 1\n", True),
        ("def f():", "\nreturn 1\n", False),
        ("def f():", "\n    '''Says\n    nothing.\n", False),
        ("x = 1", "\ny = 2\x00\n", False),
    ],
)
def test_what_counts_as_parsing(before: str, after: str, fine: bool) -> None:
    assert parses(before, after) is fine


def test_a_model_that_ends_the_document_is_taken_at_its_word() -> None:
    assert parses("x = 1", "\ny = 2", ended=True)
    assert not parses("x = 1", "\ny = (2", ended=True)
    assert not parses("x = 1", "", ended=True)


def test_words_and_numbers_are_no_python() -> None:
    assert is_python("import os\n")
    assert not is_python("word\n")
    assert not is_python("[1, 2, 3]\n")
    assert not is_python("Some words that say something.\n")


def test_completions_of_python_are_parsed(home: Home) -> None:
    with open_engine(home[2]) as engine:
        found = completions(engine, home[1], 6, new_tokens=24)
        again = completions(engine, home[1], 6, new_tokens=24)
        assert found == again
        warm = completions(engine, home[1], 6, new_tokens=24, temperature=1.0)
        assert [c.text for c in warm.cases] != [c.text for c in found.cases]
        assert [(c.hash, c.line) for c in warm.cases] == [(c.hash, c.line) for c in found.cases]
        with pytest.raises(ProjectError, match=f"{engine.context} new tokens do not fit"):
            completions(engine, home[1], 8, new_tokens=engine.context)
    assert len(found.cases) == 6
    assert found.model.value == sum(c.parses for c in found.cases) / 6
    assert found.true.value > found.other.value
    assert found.true.low < found.true.value <= found.true.high
    k, z = 6 * found.true.value, 1.6448536  # Wilson's interval, written out
    middle, half = (k + z * z / 2) / (6 + z * z), z / (6 + z * z) * math.sqrt(k * (6 - k) / 6 + z * z / 4)
    assert (found.true.low, found.true.high) == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_text_that_is_no_python_is_told(tmp_path: Path) -> None:
    lines = [{"text": f"Chapter {i} tells what happened in the year {i}, and how. " * 9} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = CorpusConfig(
        sources=(str(tmp_path / "a.jsonl"),), vocab_size=300, heldout_share=0.2, near_duplicate_threshold=1.0
    )
    words = build_corpus(config, tmp_path / "corpora")
    save_pretrained(GPT(shape(32, words.vocab_size, n_layers=1, context=32)), words, tmp_path / "model")
    with (
        open_engine(tmp_path / "model") as engine,
        pytest.raises(CorpusError, match=r"0% of the held-out documents .* are Python"),
    ):
        completions(engine, words, 4, new_tokens=8)


def test_only_the_context_is_disturbed_and_the_rest_is_scored(home: Home) -> None:
    corpus, model = home[1], load_pretrained(home[2])
    with open_engine(home[2]) as engine:
        third = engine.context // 3
        found = robustness(engine, corpus, eval_tokens=16 * 2 * third, rates=(0.5, 1.0))
        assert found == robustness(engine, corpus, eval_tokens=16 * 2 * third, rates=(0.5, 1.0))
        with pytest.raises(ProjectError, match=r"a rate of 0\.5, 2 is no share"):
            robustness(engine, corpus, eval_tokens=4096, rates=(0.5, 2.0))
    assert found.windows == 16
    assert found.scored_tokens == 16 * third
    windows = heldout_windows(corpus, 2 * third, 16 * 2 * third).numpy()[:, :-1]
    plain = [nats_of(model, row.tolist()) - nats_of(model, row[: third + 1].tolist()) for row in windows]
    first = np.array([nats_of(model, row[: third + 1].tolist()) for row in windows])
    before = np.array([nats_of(model, row[:third].tolist()) for row in windows])
    size = token_bytes(corpus)[windows[:, third:]].sum()
    scored = (np.array(plain) + first - before).sum()  # all that follows the context
    assert found.bpb == pytest.approx(scored / math.log(2) / size, rel=0.01)  # contexts were encoded again
    shifts = {(s.perturbation, s.rate): s for s in found.shifts}
    assert set(shifts) == {(n, r) for n in ("typos", "case", "truncation") for r in (0.5, 1.0)}
    assert shifts["case", 1.0].change > 0
    assert shifts["typos", 1.0].context_tokens > found.context_tokens
    assert shifts["truncation", 1.0].context_tokens == 1  # the end token is all that is left
    assert all(s.bpb == pytest.approx(found.bpb + s.change) for s in found.shifts)


def test_an_ensemble_is_the_mean_of_probabilities(home: Home, other: Path) -> None:
    found = compare([other, home[2]], home[1], eval_tokens=1024, ensemble=True)
    assert (found.context, found.windows, found.best) == (32, 32, 1)
    models = [load_pretrained(path) for path in (other, home[2])]
    rows = heldout_windows(home[1], 32, 1024)
    with torch.no_grad():
        told = [m(rows[:, :-1]).double().softmax(2).gather(2, rows[:, 1:, None])[..., 0] for m in models]
    assert found.ensemble is not None
    assert found.ensemble.loss == pytest.approx(-float(((told[0] + told[1]) / 2).log().mean()), rel=1e-4)
    losses = [-p.log().mean(1) for p in told]
    assert [m.loss for m in found.members] == pytest.approx([float(loss.mean()) for loss in losses], rel=1e-4)
    more = losses[0] - losses[1]
    assert found.members[0].change == pytest.approx(float(more.mean()), rel=1e-3)
    assert found.members[0].change_se == pytest.approx(float(more.std() / math.sqrt(32)), rel=1e-3)
    assert (found.members[1].change, found.members[1].change_se) == (0, 0)
    twice = compare([home[2], home[2]], home[1], eval_tokens=1024, ensemble=True)
    assert twice.ensemble is not None
    assert twice.ensemble.change == pytest.approx(0, abs=1e-9)
    with pytest.raises(ProjectError, match="two models or more"):
        compare([home[2]], home[1], eval_tokens=1024)


def test_what_was_asked_is_not_asked_again(home: Home, tmp_path: Path) -> None:
    project, corpus = Project(tmp_path / "project"), home[1]
    model = shutil.copytree(home[2], tmp_path / "model")
    asked = Questions(1024, by_document=True, robust=True, rates=(0.5,))
    asking = Asking(project, corpus, asked, Silent())
    answers = asking.loss(model), asking.rest(model)
    known = project.all(KIND, Evaluation)
    assert [e.part for e in known] == ["loss", "documents", "robustness"]
    assert known[0].corpus_id == corpus.id
    assert known[0].artifacts[0].engine.startswith("transformers ")
    assert known[0].machine

    def never() -> Any:
        raise AssertionError("it was measured again")

    moved = model.rename(tmp_path / "elsewhere")
    again = evaluated(project, "loss", (moved,), corpus, {"eval_tokens": 1024}, type(answers[0]), never)
    assert again == answers[0]
    assert asking.loss(moved) == answers[0]
    rest = asking.rest(moved)
    assert rest.documents is not None
    assert answers[1].documents is not None
    assert rest.documents.to_json() == answers[1].documents.to_json()  # which may hold nan
    assert rest.robustness == answers[1].robustness
    assert project.all(KIND, Evaluation) == known
    asking.loss(home[2])
    assert len(project.all(KIND, Evaluation)) == len(known)  # the same bytes
    Asking(project, corpus, asked._replace(eval_tokens=2048), Silent()).loss(moved)
    assert len(project.all(KIND, Evaluation)) == len(known) + 1


def test_an_engine_goes_on_up_to_an_end(home: Home) -> None:
    ids = heldout_tokens(home[1])[:8].tolist()
    with open_engine(home[2]) as engine:
        room = engine.context - len(ids) + 1
        new = list(islice(continued(engine, ids), room))
        assert list(continued(engine, ids, ends={new[3]})) == new[: new.index(new[3])]
        nats = token_nats(engine, [*ids, *new[:1]])
        assert nats.shape == (8,)
        assert nats[-1] == pytest.approx(-float(np.log(_likeliest(engine, ids))), rel=1e-4)
        with pytest.raises(ProjectError, match="do not fit into a context"):
            list(continued(engine, ids))


def _likeliest(engine: Any, ids: list[int]) -> float:
    engine.reset()
    logits = torch.from_numpy(engine.feed(ids, every=False)[0]).double()
    return float(logits.softmax(0).max())


def write_tasks(folder: Path) -> None:
    """A multiple-choice task, one that is read, and one that is answered in words."""
    rows = [
        {"prompt": "def __init__(", "choices": ["self", "import", "yield"], "answer": 0},
        {"prompt": "import ", "choices": [")", "os", "\n\n"], "answer": 1},
        {"prompt": "    return ", "choices": ["zyx", "qqq", "None"], "answer": 2},
        {"prompt": "for i in ", "choices": ["range(", "))))", "self"], "answer": 1},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = ["import os\nimport sys\n\n\ndef main(argv):\n    return 0\n" * 48, "class A:\n    pass\n"]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "_base.yaml").write_text("dataset_path: json\ntest_split: test\n")
    (folder / "choice.yaml").write_text(
        "include: _base.yaml\ntask: choice\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
        "output_type: multiple_choice\ndoc_to_text: '{{prompt}}'\ndoc_to_choice: choices\n"
        "doc_to_target: answer\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]\n"
    )
    (folder / "rolling.yaml").write_text(
        "include: _base.yaml\ntask: rolling\ndataset_kwargs: {data_files: {test: texts.jsonl}}\n"
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    (folder / "words.yaml").write_text(
        "include: _base.yaml\ntask: words\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
        "output_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{choices[answer]}}'\n"
        "generation_kwargs: {until: ['\\n', ':', '('], max_gen_toks: 6}\n"
        "metric_list: [{metric: exact_match}]\n"
    )


def test_tasks_of_lm_eval_are_scored_as_we_compute_them(home: Home, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra isoflop[lm-eval] is not installed")
    from isoflop.scoring.harness import Loaded, evaluate_tasks

    write_tasks(tmp_path)
    corpus, model, tok = home[1], load_pretrained(home[2]), tokenizer(home[1])
    loaded = Loaded(tmp_path)
    with open_engine(home[2]) as engine:
        found = {score.task: score for score in evaluate_tasks(engine, corpus, loaded).scores}
        context = engine.context
    assert set(found) == {"choice", "rolling", "words"}
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    right = [
        row["answer"] == int(np.argmax([chance(model, tok, row, c) for c in row["choices"]])) for row in rows
    ]
    assert found["choice"].value == np.mean(right)
    assert found["choice"].documents == 4
    assert found["choice"].se == pytest.approx(np.std(right, ddof=1) / 2)
    texts = [json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert len(tok.encode(texts[0]).ids) > context  # it is cut into windows
    nats = sum(rolled(model, [end_token(corpus), *tok.encode(text).ids], context) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert found["rolling"].value == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert Loaded(tmp_path).id == loaded.id
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("yield", "class"))
    assert Loaded(tmp_path).id != loaded.id


def test_answers_in_words_stop_where_the_task_says(home: Home) -> None:
    pytest.importorskip("lm_eval", reason="the extra isoflop[lm-eval] is not installed")
    from isoflop.scoring.harness import answerer

    tok, end = tokenizer(home[1]), end_token(home[1])
    with open_engine(home[2]) as engine:
        ids = list(islice(continued(engine, [end, *engine.encode("import ")], ends={end}), 12))
        whole = tok.decode(ids)
        lm = answerer(engine, tok, end, 0, Silent())

        def answered(**options: object) -> Any:
            return lm.generate_until([SimpleNamespace(args=("import ", options))])

        assert answered(max_gen_toks=12) == [whole]
        stops = [whole[-1], whole[3:5]]
        assert answered(max_gen_toks=12, until=stops) == [whole[: min(whole.index(stop) for stop in stops)]]
        assert answered(max_gen_toks=5, until="\ufdd0") == [tok.decode(ids[:5])]
        with pytest.raises(ProjectError, match="asks for num_beams, top_p in its generation_kwargs"):
            answered(num_beams=2, top_p=0.5)


def chance(model: Any, tok: Tokenizer, row: dict[str, Any], choice: str) -> float:
    """Log-probability of a choice after its prompt, whose last spaces are of the choice."""
    begins = len(tok.encode(row["prompt"].rstrip()).ids)
    ids = tok.encode(row["prompt"] + choice).ids
    return nats_of(model, ids[:begins]) - nats_of(model, ids)


def rolled(model: Any, ids: list[int], context: int) -> float:
    """Each token once; windows but the first end with what is left and are full."""
    nats, done = nats_of(model, ids[: context + 1]), context
    while done < len(ids) - 1:
        upto = min(done + context, len(ids) - 1)
        window = ids[upto - context : upto + 1]
        seen = len(window) - (upto - done)
        nats += nats_of(model, window) - nats_of(model, window[:seen])
        done = upto
    return nats


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none", None, "there are no tasks at"),
        ("bad.yaml", "task: [", "lm-eval cannot read the task"),
        ("hub.yaml", "task: hub\ndataset_path: org/name\n", "takes its data from 'org/name'"),
        ("gone.yaml", "task: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: no.jsonl}}\n"
         "test_split: test\n", "lm-eval cannot read the task"),
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_read_are_named(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    pytest.importorskip("lm_eval", reason="the extra isoflop[lm-eval] is not installed")
    from isoflop.scoring.harness import Loaded

    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ProjectError, match=words):
        Loaded(tmp_path / name)
