"""What a model goes by and where it fails, on models and data whose reasons are known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.font_manager import fontManager
from tiny import BAD, GOOD, PLAIN, tiny_bert, tiny_qwen3
from torch import nn

from isoflop.adapting.inputs import Sources
from isoflop.adapting.records import AdaptConfig, Adapted, Peer, TaskLaw
from isoflop.adapting.saved import save_adapted
from isoflop.errors import AdaptError
from isoflop.explaining.attributions import attribute, attribute_image, output, tokens_of
from isoflop.explaining.calibration import reliability
from isoflop.explaining.card import card, write_card
from isoflop.explaining.explain import explain
from isoflop.explaining.fairness import fairness
from isoflop.explaining.faithfulness import faithfulness
from isoflop.explaining.records import Attribution, Explained, Word
from isoflop.explaining.robustness import robustness
from isoflop.explaining.slices import slices
from isoflop.explaining.words import joined, words_of
from isoflop.metrics import METRICS, compared, scored
from isoflop.plots.explaining import LINE, attribution_data, save_attributions, save_heats
from isoflop.plots.glyphs import faces_for, written
from isoflop.progress import Silent
from isoflop.store import Project, content_hash
from isoflop.tasks import Base, LossOptions, Spec, load_base, task_of

DECIDING = {"good": GOOD, "bad": BAD}


class Learned(NamedTuple):
    """A classifier that goes by one word of a sentence."""

    base: Base
    spec: Spec
    model: nn.Module
    rows: Dataset


def sentences(n: int, seed: int) -> Dataset:
    """Of six to twelve words; one of them decides the label, or none and the label is plain."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for i in range(n):
        words = rng.choice(PLAIN, rng.integers(6, 13)).tolist()
        label = ("good", "bad", "plain")[i % 3]
        if label != "plain":
            words[rng.integers(len(words))] = str(rng.choice(DECIDING[label]))
        texts.append(" ".join(words) + ".")
        labels.append(label)
    return Dataset.from_dict({"text": texts, "label": labels})


@pytest.fixture(scope="session")
def learned() -> Learned:
    task, base, rows = task_of("classification"), load_base(tiny_bert()), sentences(480, 1)
    spec = task.spec(rows, base)
    torch.manual_seed(0)
    model = task.build(base, spec).eval()  # without dropout: it is learned within some dozen steps
    encoded = task.encode(base, spec, rows.to_dict())
    features = [{name: values[i] for name, values in encoded.items()} for i in range(len(rows))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loss = torch.tensor(torch.inf)
    for step in range(200):
        batch = task.collate(base, spec, features[24 * (step % 20) :][:24])
        optimizer.zero_grad()
        loss = task.loss(task.logits(model, batch), batch, LossOptions(label_smoothing=0.1)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if loss < 0.31:  # the smoothed labels' entropy is 0.29
            break
    assert loss < 0.31
    return Learned(base, spec, model, sentences(60, 2))


@pytest.fixture(scope="session")
def attributed(learned: Learned) -> list[Attribution]:
    task = task_of("classification")
    return [
        attribute(task, learned.base, learned.spec, learned.model, text) for text in learned.rows["text"][:24]
    ]


def test_the_word_that_decides_is_found(learned: Learned, attributed: list[Attribution]) -> None:
    assert [a.output for a in attributed] == learned.rows["label"][:24]
    decided = [a for a in attributed if a.output != "plain"]
    largest = [max(a.words, key=lambda word: word.attribution) for a in decided]
    assert np.mean([word.text in GOOD + BAD for word in largest]) >= 0.9
    for a in attributed:
        assert [a.text[w.start : w.end] for w in a.words] == [w.text for w in a.words]
        assert [w.text for w in a.words] == [*a.text[:-1].split(), "."]


def test_attributions_sum_to_the_difference_of_outputs(
    learned: Learned, attributed: list[Attribution]
) -> None:
    for a in attributed:
        assert a.completeness_error <= 0.02
        assert a.total == pytest.approx(a.value - a.baseline, rel=0.02)
        assert abs(a.total - sum(w.attribution for w in a.words)) < 1e-4 * abs(a.total)
        inputs = learned.base.processor(a.text, return_tensors="pt")
        with torch.no_grad():
            p = learned.model(**inputs).logits.softmax(-1)[0, learned.spec.labels.index(a.output)]
        assert a.value == pytest.approx(float(torch.logit(p)), rel=1e-3)


def test_attributions_name_what_the_model_goes_by(learned: Learned, attributed: list[Attribution]) -> None:
    task = task_of("classification")
    decided = [a for a in attributed if a.output != "plain"]
    found = faithfulness(task, learned.base, learned.spec, learned.model, decided, seed=0)
    assert found.texts == len(decided)
    assert found.comprehensiveness_gain.low > 0.2
    assert found.sufficiency_gain.low > 0.2
    gain = found.comprehensiveness.value - found.random_comprehensiveness.value
    assert found.comprehensiveness_gain.value == pytest.approx(gain)


def test_another_label_is_asked_about(learned: Learned) -> None:
    task, text = task_of("classification"), "the walk was grim."
    here, there = (
        attribute(task, learned.base, learned.spec, learned.model, text, label=label)
        for label in ("bad", "good")
    )
    assert here.value > 1 > -1 > there.value
    assert here.words[3].attribution == max(word.attribution for word in here.words)
    assert there.words[3].attribution < here.words[3].attribution
    with pytest.raises(AdaptError, match="'fine' is no label"):
        attribute(task, learned.base, learned.spec, learned.model, text, label="fine")


def test_a_tag_of_a_word() -> None:
    """A tagger that has learned nothing: words and sums are right all the same."""
    task, base = task_of("tagging"), load_base(tiny_bert())
    words = ["the", "day", "unheard-of", "kind"]
    rows = Dataset.from_dict({"tokens": [words], "tags": [["O", "B-x", "O", "O"]]})
    spec = task.spec(rows, base)
    torch.manual_seed(0)
    model = task.build(base, spec)
    found = attribute(task, base, spec, model, words, word=2, label="B-x")
    assert [word.text for word in found.words] == words
    assert [found.text[word.start : word.end] for word in found.words] == words
    assert found.output == "B-x of unheard-of"
    assert found.completeness_error <= 0.02
    inputs = base.processor(words, is_split_into_words=True, return_tensors="pt")
    at = inputs.word_ids(0).index(2)
    with torch.no_grad():
        p = model(**inputs).logits[0, at].softmax(-1)[spec.labels.index("B-x")]
    assert found.value == pytest.approx(float(torch.logit(p)), abs=1e-4)
    with pytest.raises(AdaptError, match="an output for each word"):
        attribute(task, base, spec, model, words)
    with pytest.raises(AdaptError, match="that read one text, not of similarity"):
        attribute(task_of("similarity"), base, spec, model, "a text")


@pytest.mark.parametrize(
    ("name", "base", "rows"),
    [
        ("multi-label", tiny_bert, {"labels": [["calm", "long"], ["calm"], ["cold"]]}),
        ("regression", tiny_bert, {"number": [0.0, 1.0, 5.0]}),
        ("classification", tiny_qwen3, {"label": ["good", "bad", "good"]}),
    ],
    ids=["multi-label", "regression", "decoder"],
)
def test_other_heads_and_decoders(name: str, base: Any, rows: dict[str, list[Any]]) -> None:
    """Models that have learned nothing: the output is the head's, and the words' shares sum to it."""
    task, base = task_of(name), load_base(base())
    data = Dataset.from_dict({"text": ["the day was calm", "a long walk home", "cold"], **rows})
    spec = task.spec(data, base)
    torch.manual_seed(0)
    model: Any = task.build(base, spec).eval()
    found = [attribute(task, base, spec, model, text) for text in data["text"][:2]]
    for a in found:
        with torch.no_grad():
            z = model(**base.processor(a.text, return_tensors="pt")).logits[0]
        number = 0 if name == "regression" else spec.labels.index(a.output)
        assert number == int(z.argmax())
        others = torch.cat([z[:number], z[number + 1 :]])
        value = z[number] - others.logsumexp(0) if task.soft else z[number]
        assert a.value == pytest.approx(float(value), abs=1e-4)
        assert a.unit == ("standard deviations" if name == "regression" else "nats of log-odds")
        assert [word.text for word in a.words] == a.text.split()
        assert a.total == pytest.approx(a.value - a.baseline, rel=0.02, abs=1e-4)
    faithful = faithfulness(task, base, spec, model, found)
    assert faithful.texts == 2
    assert faithful.comprehensiveness.low <= faithful.comprehensiveness.value


def test_the_pixels_that_decide_are_found(tmp_path: Path) -> None:
    """Of a model whose label is the brighter half of an image."""
    size = 16

    class Halves(nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            left, right = pixel_values[..., : size // 2], pixel_values[..., size // 2 :]
            return SimpleNamespace(logits=torch.stack([x.mean((1, 2, 3)) for x in (left, right)], 1))

    pixels = torch.zeros(1, 3, size, size)
    pixels[..., 4:8, 10:14] = 1.0
    task: Any = SimpleNamespace(
        soft=True, encode=lambda *_: {"x": [0]}, collate=lambda *_: {"pixel_values": pixels},
        logits=lambda model, batch: model(**batch).logits,
    )  # fmt: skip
    spec = Spec(task="image-classification", labels=("left", "right"))
    heat = attribute_image(task, Any, spec, Halves(), {"image": None})  # type: ignore[arg-type]
    assert heat.label == "right"
    assert heat.heat.sum() == pytest.approx(heat.value - heat.baseline)
    assert set(zip(*np.nonzero(heat.heat > 1e-9), strict=True)) == {
        (i, j) for i in range(4, 8) for j in range(10, 14)
    }
    assert save_heats(tmp_path / "heat.png", [heat, heat]) == ""
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")


def test_tokens_are_joined_to_words(learned: Learned) -> None:
    text = "Bright, not-so walk2day!  "
    tokens = tokens_of(task_of("classification"), learned.base, learned.spec, text)
    assert [word for word, _, _ in tokens.words] == ["Bright", ",", "not", "-", "so", "walk2day", "!"]
    assert all(text[start:end] == word for word, start, end in tokens.words)
    assert [n == -1 for n in tokens.numbers] == list(tokens.special)
    assert max(tokens.numbers) == 6
    assert len(tokens.numbers) > 9  # words of several tokens


def test_words_of_a_script_without_blanks() -> None:
    spans = [(0, 2), (2, 3), (3, 3), (3, 6), (6, 7), (6, 7)]  # the last two are parts of one character
    assert joined("非常好now难", spans) == [0, 1, -1, 2, 3, 3]
    assert joined("a new day", [(0, 1), (1, 3), (3, 5), (5, 9)]) == [0, 1, 1, 2]  # blanks within tokens
    assert words_of("好吃 Now") == {"好", "吃", "好吃", "now"}


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=6), st.floats(-50, 50))
def test_log_odds_are_those_of_the_probability(logits: list[float], shift: float) -> None:
    task, z = task_of("classification"), torch.tensor([logits], dtype=torch.float64)
    p = z.softmax(1)[0, 0]
    found = output(task, z + shift, 0)
    assert float(found) == pytest.approx(float(torch.log(p / z.softmax(1)[0, 1:].sum())), abs=1e-9)


def test_slices_of_wrong_labels(learned: Learned) -> None:
    """Rows whose labels were changed are found by the column that marks them."""
    rows = learned.rows.select(range(60))
    marks = ["changed" if i % 2 else "kept" for i in range(60)]
    turned = {"good": "bad", "bad": "plain", "plain": "good"}
    labels = [turned[label] if i % 2 else label for i, label in enumerate(rows["label"])]
    rows = Dataset.from_dict({"text": rows["text"], "label": labels, "source": marks})
    task = task_of("classification")
    predictions, references = predicted(learned, rows), task.references(learned.spec, rows)
    found = slices(task, learned.spec, rows, predictions, references)
    assert found is not None
    assert found.slices[0].name == "source changed"
    assert found.slices[0].worse
    assert found.slices[0].score.value < 0.1


def predicted(learned: Learned, rows: Dataset) -> list[Any]:
    task = task_of("classification")
    encoded = task.encode(learned.base, learned.spec, {"text": rows["text"]})
    features = [{name: values[i] for name, values in encoded.items()} for i in range(len(rows))]
    with torch.no_grad():
        batch = task.collate(learned.base, learned.spec, features)
        return task.predict(learned.model, learned.base, learned.spec, batch)


def test_disturbed_text_against_itself(learned: Learned) -> None:
    task = task_of("classification")
    predictions, references = predicted(learned, learned.rows), task.references(learned.spec, learned.rows)
    asked: list[Dataset] = []

    def predict(rows: Dataset) -> list[Any]:
        asked.append(rows)
        return predicted(learned, rows)

    found = robustness(task, learned.rows, predictions, references, predict, seed=3)
    assert [(d.perturbation, d.rate) for d in found] == [
        (name, rate) for name in ("typos", "case", "truncation") for rate in (0.1, 0.3)
    ]
    assert len(asked) == 6
    assert all(rows["label"] == learned.rows["label"] for rows in asked)
    typos, case = found[1].comparison, found[3].comparison
    assert typos.high < 0  # a slip in the deciding word takes it away
    assert case.difference == 0  # the tokenizer knows no capitals
    again = robustness(task, learned.rows, predictions, references, predict, seed=3)
    assert again == found


def test_the_picture_has_every_word(attributed: list[Attribution], tmp_path: Path) -> None:
    long = attributed[0].model_copy(update={"words": tuple(
        word.model_copy(update={"start": 100 * i + word.start, "end": 100 * i + word.end})
        for i in range(30) for word in attributed[0].words
    )})  # fmt: skip
    for one in (attributed[0], long):
        data = attribution_data(one)
        assert len(data.words) + data.left_out == len(one.words)
        assert np.abs(data.strengths).max() == pytest.approx(1)
        places = list(zip(data.lines, data.columns, data.words, strict=True))
        for (line, column, word), (below, beside, _) in pairwise(places):
            assert below > line or beside >= column + len(word)
        assert max(column + len(word) for _, column, word in places) <= 72
    assert data.left_out > 0
    save_attributions(tmp_path / "words.png", [attributed[0], long])
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")


def test_a_word_wider_than_a_line_is_in_pieces(attributed: list[Attribution]) -> None:
    wide = "x" * (2 * LINE + 5)
    first = attributed[0].words[0]
    words = (first, Word(text=wide, start=9, end=9 + len(wide), attribution=1.0))
    data = attribution_data(attributed[0].model_copy(update={"words": words}))
    assert "".join(data.words[1:]) == wide
    assert data.lines == (0, 1, 2, 3)
    assert [len(word) for word in data.words[1:]] == [LINE, LINE, 5]
    assert data.left_out == 0


@pytest.mark.filterwarnings("error")
def test_characters_that_no_face_has_are_said(
    attributed: list[Attribution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the faces that come with matplotlib alone, which have no Chinese."""
    own = [entry for entry in fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(fontManager, "ttflist", own)
    words = tuple(
        Word(text=text, start=i, end=i + 1, attribution=1.0) for i, text in enumerate(("非", "常", "a"))
    )
    found = attributed[0].model_copy(update={"words": words, "output": "好"})
    said = save_attributions(tmp_path / "words.png", [found])
    assert "no installed font has 3 of the characters (好 常 非)" in said
    assert written("非a", frozenset("非")) == "··a"
    assert faces_for(["plain é"]) == (("DejaVu Sans Mono",), frozenset())
    faces, missing = faces_for(["\N{MATHEMATICAL DOUBLE-STRUCK CAPITAL A}"])
    assert not missing
    assert faces[0] == "DejaVu Sans Mono"


def test_a_model_of_a_project_is_explained_by_what_it_was_tested_on(learned: Learned, tmp_path: Path) -> None:
    task, home = task_of("classification"), Project(tmp_path / "project")
    data = tmp_path / "reviews.csv"
    sentences(60, 4).to_csv(data, index=False)
    folder = home.folder / "artifacts" / "adapted-a"
    config = AdaptConfig(task=task.name, seed=3)
    save_adapted(folder, task, learned.base, learned.spec, config, learned.model)
    record = Adapted(
        id="a", task=task.name, base="0123", base_path=str(learned.base.folder),
        data={"train": f"{data} {content_hash(data)[:16]}"}, columns={"text": "text", "label": "label"},
        examples={}, spec=learned.spec, config=config, trials=(), validation=(), test=(), baseline=(),
        baseline_says="", seconds={}, flops=1e12, model="artifacts/adapted-a",
    )  # fmt: skip
    home.put("adapted", record)
    tested, _ = Sources([data]).read(task, {}, 3, [], Silent())
    found = explain(folder, [data], tmp_path, examples=0)
    assert found.examples == len(tested["test"]) < 20
    assert "the model learned from the rest of this data: these are its test examples" in found.notes
    other = tmp_path / "other.csv"
    sentences(30, 5).to_csv(other, index=False)
    assert explain(folder, [other], tmp_path, examples=0).examples == 30
    home.put("adapted", record.model_copy(update={"data": {**record.data, "test": f"{other} 0123"}}))
    with pytest.raises(AdaptError, match="learned from this data, and was tested on other"):
        explain(folder, [data], tmp_path, examples=0)


def test_the_card_is_read_back_with_its_numbers(
    learned: Learned, attributed: list[Attribution], tmp_path: Path
) -> None:
    task = task_of("classification")
    shop = ["north" if i % 2 else "south | east" for i in range(60)]
    rows = learned.rows.add_column("shop", shop)
    predictions, references = predicted(learned, rows), task.references(learned.spec, rows)
    scores = tuple(scored(METRICS[name], predictions, references) for name in task.metrics)
    found = Explained(
        task=task.name, data="reviews.csv", examples=60, scores=scores, attributions=tuple(attributed),
        faithfulness=faithfulness(task, learned.base, learned.spec, learned.model, attributed[:4]),
        slices=slices(task, learned.spec, rows, predictions, references),
        fairness=fairness(task, learned.spec, "shop", shop, predictions, references),
        reliability=reliability(task, learned.spec, predictions, references), pictures=("attributions.png",),
        robustness=robustness(task, rows, predictions, references, lambda _: predictions, rates=(0.1,)),
        notes=("2 of 62 rows have no label and are left out",),
    )  # fmt: skip
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    adapted = Adapted(
        id="a", task=task.name, base="0123", base_path=str(base), data={"train": "train.csv 45"},
        columns={"text": "body", "label": "stars"}, examples={"train": 400, "test": 60}, spec=learned.spec,
        config=AdaptConfig(task=task.name, method="lora", method_options={"r": 8}), trials=(),
        validation=(), test=scores, baseline=(scores[0].model_copy(update={"value": 0.1234}),),
        baseline_says="the commonest label", seconds={}, flops=1e12, model="m",
        law=TaskLaw(metric="macro_f1", passes=3, sentences=("Twice the labels would buy 0.01.",)),
        peer=Peer(
            says="n-grams", examples=300, test=scores,
            apart=(compared(METRICS["accuracy"], predictions, predictions, references),),
        ),
    )  # fmt: skip
    write_card(tmp_path / "README.md", "reviews", found, adapted)
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.license == "mit"
    assert read.data.pipeline_tag == "text-classification"
    results = {r.metric_type: r for r in read.data.eval_results}
    assert set(results) == set(task.metrics)
    for score in scores:
        assert results[score.metric].metric_value == pytest.approx(score.value, abs=1e-6)
        assert results[score.metric].metric_args["low"] == pytest.approx(score.low, abs=1e-6)
        assert f"| {score.metric} | {score.value:.4f} | {score.low:.4f} to {score.high:.4f} |" in read.text
    for words in (
        "lora r=8", "0.1234", "the commonest label", "Twice the labels would buy 0.01.", "text: body",
        "N-grams, of 300 of the training examples", "| the peer | ", "| +0.0000 | +0.0000 to +0.0000 |",
        "2 of 62 rows", "shop south \\| east", "attributions.png", "| typos | 10% |",
        "true-positive rate of bad",
        f"{found.faithfulness.comprehensiveness.value:.4f}" if found.faithfulness else "",
    ):  # fmt: skip
        assert words in read.text
    signed = scores[0].model_copy(update={"says": "nrefs:1|case:mixed"})
    assert "| nrefs:1\\|case:mixed |" in card("reviews", found.model_copy(update={"scores": (signed,)}))
    plain: Any = ModelCard(card("reviews", Explained(task="similarity", data="x", examples=3)))
    assert plain.data.license is None
    assert "Not stated" in plain.text
    assert "## Where it is worst" not in plain.text
