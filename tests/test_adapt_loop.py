"""The loop that adapts: bits, time, early stops, checkpoints."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import reviews, tiny_bert, tiny_qwen3
from torch import Tensor, nn

from isoflop.adapting import loop, running
from isoflop.adapting.batches import Rows, order_of
from isoflop.adapting.loop import Tuned, fine_tune, predict_all, scores_of
from isoflop.adapting.planning import Pace, rate, steps_asked, steps_that_fit
from isoflop.adapting.records import AdaptConfig, Point
from isoflop.errors import AdaptError, BudgetError
from isoflop.interrupt import Interrupted
from isoflop.progress import Silent
from isoflop.tasks import load_base, task_of

TASK = task_of("classification")
BERT = load_base(tiny_bert(), max_length=32)
ROWS, HELD = reviews(64), reviews(24, seed=5)
SPEC = TASK.spec(ROWS, BERT)


def config_of(**options: Any) -> AdaptConfig:
    given = {"lr": 1e-3, "steps": 12, "batch": 8, "evaluations": 3, "patience": 0, **options}
    return AdaptConfig(task="classification", **given)


def tuned(config: AdaptConfig, rows: Dataset = ROWS, **options: Any) -> Tuned:
    return fine_tune(TASK, BERT, SPEC, rows, HELD, config, **options)


def weights_of(made: Tuned) -> dict[str, Tensor]:
    return dict(made.model.state_dict())


def assert_same(first: Tuned, second: Tuned) -> None:
    assert weights_of(first).keys() == weights_of(second).keys()
    for name, x in weights_of(first).items():
        assert torch.equal(x, weights_of(second)[name]), name
    points = [[p.model_copy(update={"seconds": 0.0}) for p in made.trial.curve] for made in (first, second)]
    assert points[0] == points[1]


def test_it_learns_and_says_what_it_did() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    made = tuned(config_of(steps=120, lr=3e-3))
    assert torch.equal(before, torch.get_rng_state())
    found = predict_all(TASK, BERT, SPEC, made.model, HELD)
    f1, _ = scores_of(TASK, found, TASK.references(SPEC, HELD))
    assert f1.metric == "macro_f1"
    assert f1.value == made.trial.score > 0.8
    assert [point.step for point in made.trial.curve] == [40, 80, 120]
    assert made.trial.curve[-1].examples == 120 * 8
    assert made.trial.stopped == ""
    assert not made.model.training
    assert made.trial.params_trained == sum(p.numel() for p in made.model.parameters())


def test_flops_are_near_six_a_weight_and_token() -> None:
    made = tuned(config_of(steps=4, evaluations=1))
    encoder = dict(made.model.named_modules())["bert.encoder"]
    weights = sum(p.numel() for p in encoder.parameters() if p.dim() > 1)
    lengths = [len(BERT.processor(text)["input_ids"]) for text in ROWS["text"]]
    tokens = 4 * 8 * np.mean(lengths)
    assert 0.8 < made.trial.flops / (6 * weights * tokens) < 1.8  # padding, attention, the head


def test_a_seed_says_all() -> None:
    config = config_of(augment=("noise", "swap"), mixup=0.2, averaged=0.9, r_drop=0.5)
    first, again, other = (tuned(config.model_copy(update={"seed": seed})) for seed in (0, 0, 1))
    assert_same(first, again)
    name = "classifier.weight"
    assert not torch.equal(weights_of(first)[name], weights_of(other)[name])


@pytest.mark.parametrize(
    "options",
    [
        {"averaged": 0.9, "augment": ("delete",), "adversarial": "freelb"},
        {"method": "adalora", "lr": 1e-2},
    ],
)  # fmt: skip
def test_interrupted_and_gone_on_with_it_has_the_same_bits(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(**options)
    whole = tuned(config)
    heard: list[int] = []

    def interrupt(point: Point) -> bool:
        heard.append(point.step)
        if point.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    with pytest.raises(Interrupted):
        tuned(config, report=interrupt, checkpoint=tmp_path)
    assert heard == [4]
    monkeypatch.setattr(running, "CHECKPOINT_SECONDS", 0.0)
    assert_same(tuned(config, report=interrupt, checkpoint=tmp_path), whole)
    assert heard == [4, 8, 12]
    assert_same(tuned(config, checkpoint=tmp_path), whole)  # nothing is left to do
    with pytest.raises(AdaptError, match="is of another configuration"):
        tuned(config.model_copy(update={"seed": 3}), checkpoint=tmp_path)


class Ticking:
    """A clock that each look at it moves on."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


def test_the_time_is_kept_and_the_rate_has_fallen_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rates = Ticking(0.1), list[float]()
    for module in (loop, running):
        monkeypatch.setattr(module, "time", clock)
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    made = tuned(config_of(steps=10_000), seconds=40.0)
    assert made.trial.seconds <= clock.now <= 40.0
    taken = made.trial.curve[-1].step
    assert 20 < taken == len(rates) < 10_000
    assert made.trial.stopped == "budget"
    assert rates[-1] < 0.1 * max(rates)
    with pytest.raises(BudgetError, match="seconds are too few"):
        tuned(config_of(), seconds=0.5)


def test_the_rate_rises_and_falls_to_zero() -> None:
    found = [rate(step, 100, 0.1) for step in range(101)]
    assert found[:2] == [0.1, 0.2]
    assert found[9] == found[10] == 1.0
    assert found[100] == 0.0
    assert found[99] == pytest.approx(1 / 90)
    assert all(0 < x <= 1 for x in (rate(s, 3, 0.5) for s in range(3)))
    assert rate(0, 5, 0.0) == 1.0


def test_plans() -> None:
    assert steps_asked(config_of(steps=0, epochs=2.0), 20, 8) == 6
    steps, scores = steps_that_fit(Pace(step=1.0, scoring=1.0), 10, 100.0)
    assert scores == 10
    assert steps == 90
    assert steps_that_fit(Pace(step=1.0, scoring=20.0), 10, 100.0) == (80, 1)
    assert steps_that_fit(Pace(step=10.0, scoring=1.0), 10, 5.0)[0] == 0


def test_it_ends_when_the_score_gets_no_better_and_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.7, 0.6, 0.65, 0.9])

    def scored(metric: Any, found: Any, references: Any, **options: Any) -> Any:
        return type("Score", (), {"value": next(values)})

    monkeypatch.setattr(running, "scored", scored)

    made = tuned(config_of(steps=50, evaluations=10, patience=2))
    assert [p.score for p in made.trial.curve] == [0.5, 0.7, 0.6, 0.65]
    assert made.trial.stopped == "patience"
    assert made.trial.score == 0.7
    values = iter([0.5, 0.7])
    short = tuned(config_of(steps=50, evaluations=10), report=lambda point: point.step == 10)
    assert short.trial.stopped == "pruned"
    assert torch.equal(weights_of(short)["classifier.weight"], weights_of(made)["classifier.weight"])


def test_rows_come_once_a_pass_with_near_lengths_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 333)
    passes = [order_of(lengths, 8, seed=s, epoch=e) for s, e in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert passes[0] == passes[1]
    assert passes[0] != passes[2]
    assert passes[0] != passes[3]
    for found in passes:
        assert sorted(i for batch in found for i in batch) == list(range(333))
    spread = np.mean([np.ptp(lengths[batch]) for batch in passes[0]])
    assert spread < 0.1 * np.ptp(lengths)


def test_the_length_of_a_pair_is_that_of_both_texts(tmp_path: Path) -> None:
    task, texts = task_of("similarity"), ["the day", "a long walk by the river", "home", "we saw a bird"]
    numbers = [0.0, 1.0, 0.5, 0.2]
    rows = Dataset.from_dict({"first": texts, "second": texts[1:] + texts[:1], "number": numbers})
    found = Rows(task, BERT, task.spec(rows, BERT), rows, tmp_path, "training").lengths
    own = [len(BERT.processor(text)["input_ids"]) for text in texts]
    assert found.tolist() == [a + b for a, b in zip(own, own[1:] + own[:1], strict=True)]


def test_penalties_replay_and_a_given_model() -> None:
    """A penalty that undoes all gradients leaves the model as it was given, whatever is replayed."""
    torch.manual_seed(0)
    model = TASK.build(BERT, SPEC)
    model.requires_grad_(False)
    head: Any = model.classifier
    head.requires_grad_(True)
    before = {name: x.clone() for name, x in model.state_dict().items()}

    def undo(given: nn.Module) -> None:
        for p in given.parameters():
            p.grad = None if p.grad is None else torch.zeros_like(p.grad)

    config = config_of(weight_decay=0.0, replay=0.25)
    rows = ROWS.select(range(60))
    made = tuned(config, rows, initial=model, penalty=undo, replay=reviews(8, seed=9))
    assert made.model is model
    assert made.trial.params_trained == sum(p.numel() for p in head.parameters())
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name])
    assert made.trial.curve[-1].examples == 12 * 6  # of 8 in a batch 2 are replayed
    tuned(config, initial=model, replay=reviews(8, seed=9))
    assert not torch.equal(head.weight, before["classifier.weight"])


def test_an_average_follows_the_weights() -> None:
    """It is what is scored and kept, and lies between where the weights began and where they are."""
    plain, mean = tuned(config_of(evaluations=1)), tuned(config_of(evaluations=1, averaged=0.99))
    torch.manual_seed(0)
    start = dict(TASK.build(BERT, SPEC).state_dict())
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    far, near = (weights_of(made)[name] - start[name] for made in (plain, mean))
    assert 0.1 * far.norm() < near.norm() < far.norm()


def test_long_inputs_are_counted() -> None:
    class Told(Silent):
        def log(self, message: str) -> None:
            told.append(message)

    told: list[str] = []
    base = load_base(tiny_bert(), max_length=8)
    spec = TASK.spec(ROWS, base)
    made = fine_tune(TASK, base, spec, ROWS, HELD, config_of(steps=1, evaluations=1), progress=Told())
    longer = sum(len(base.processor(text)["input_ids"]) > 8 for text in ROWS["text"])
    assert 0 < made.cut == longer < len(ROWS)
    assert told == [f"{longer} of 64 training inputs were cut to 8 tokens"]


def test_features_are_kept_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuned(config_of(steps=2), features=tmp_path)
    monkeypatch.setattr(type(TASK), "encode", lambda *given: pytest.fail("encoded again"))
    assert_same(tuned(config_of(steps=2), features=tmp_path), made)


def test_dropout_is_as_asked() -> None:
    made = tuned(config_of(steps=1, dropout=0.3)).model
    assert {module.p for module in made.modules() if isinstance(module, nn.Dropout)} == {0.3}
    qwen = load_base(tiny_qwen3(), max_length=32)
    decoder = fine_tune(TASK, qwen, SPEC, ROWS, HELD, config_of(steps=1, dropout=0.3)).model
    found = {m.attention_dropout for m in decoder.modules() if hasattr(m, "attention_dropout")}
    assert found == {0.3}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": 1e30, "grad_clip": 0.0}, "the loss is (nan|inf) at step"),
        ({"adversarial": "evil"}, "'evil' is no adversary"),
        ({"augment": ("poetry",)}, "'poetry' is no augmentation"),
        ({"augment": ("flip",)}, "changes image, and classification reads none"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], says: str) -> None:
    with pytest.raises(AdaptError, match=says):
        tuned(config_of(**options))


def test_no_examples_are_said() -> None:
    with pytest.raises(AdaptError, match="there are no examples for validation"):
        fine_tune(TASK, BERT, SPEC, ROWS, HELD.select([]), config_of())
