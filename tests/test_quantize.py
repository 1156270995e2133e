"""Quantization by sensitivity: bits go where they are worth most, and limits hold for what is measured."""

from __future__ import annotations

import itertools

import pytest
import torch
from finished import Home

from isoflop.errors import IsoflopError, TrainError
from isoflop.export.gated import export, exportable
from isoflop.export.gguf import restored, stored
from isoflop.gpt import GPT
from isoflop.progress import Silent
from isoflop.transforms import Transform
from isoflop.transforms import quantize as room
from isoflop.transforms.quantize import Choice, Quantized, Sensitivity, quantize
from isoflop.using import evaluate_model

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")

TOKENS = 8192  # held-out


@pytest.fixture(scope="module")
def within_a_percent(home: Home) -> Quantized:
    return quantize(*home, max_loss_increase=0.01, eval_tokens=TOKENS)


def test_a_limit_on_the_loss_holds_in_the_engine(home: Home, within_a_percent: Quantized) -> None:
    made = within_a_percent
    file = home[0].folder / made.export.path
    loss = evaluate_model(file, home[1], eval_tokens=TOKENS).loss
    assert made.transform.before is not None
    assert loss == made.transform.after.loss
    assert loss <= 1.01 * made.transform.before.loss
    assert made.found == pytest.approx(made.expected, abs=0.02)
    assert file.stat().st_size == made.export.bytes < export(*home, kind="q8_0").bytes
    assert home[0].get("transform", made.transform.id, Transform) == made.transform
    assert made.transform.flops_total > 0


def test_bytes_buy_more_than_one_type_for_all(home: Home) -> None:
    for kind in ("q4_0", "q5_0"):
        plain = export(*home, kind=kind)
        made = quantize(*home, max_bytes=plain.bytes, eval_tokens=TOKENS)
        assert made.export.bytes <= plain.bytes
        loss = evaluate_model(home[0].folder / plain.path, home[1], eval_tokens=TOKENS).loss
        assert made.transform.after.loss <= loss + 1e-3


def test_what_is_known_is_not_measured_again(
    home: Home, within_a_percent: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_choices", None)  # of sensitivities
    assert quantize(*home, max_loss_increase=0.01, eval_tokens=TOKENS) == within_a_percent
    assert quantize(*home, max_loss_increase=0.02, eval_tokens=TOKENS).export.bytes > 0


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "needs one limit"),
        ({"max_bytes": 1e6, "max_loss_increase": 0.1}, "needs one limit"),
        ({"max_loss_increase": -0.1}, "limit of -0.1 means nothing"),
        ({"max_bytes": float("nan")}, "means nothing"),
        ({"max_bytes": 1000.0}, r"1,000 bytes or fewer: the smallest has [\d,]+"),
        ({"max_bytes": 1e6, "calibrate": -1}, "too few"),
    ],
)
def test_limits_that_cannot_be_are_told(home: Home, limits: dict[str, float], words: str) -> None:
    before = sorted((home[0].folder / "artifacts").iterdir())
    with pytest.raises(IsoflopError, match=words):
        quantize(*home, eval_tokens=TOKENS, **limits)  # type: ignore[arg-type]
    assert sorted((home[0].folder / "artifacts").iterdir()) == before


def test_a_loss_that_no_file_has_tells_the_nearest() -> None:
    class Worse(room._Trial):
        def __init__(self) -> None:
            self.tried: list[int] = []

        def loss(self, chosen: room.Chosen) -> float:
            self.tried.append(room._bytes(chosen))
            return 3.0 + 10 * room._nats(chosen) + 0.02

    trial = Worse()
    path = list(room._exchanges(two()))
    assert room._nats(room._within_loss(path, 0.03, 3.0, trial, Silent())) == pytest.approx(0.0)
    assert trial.tried == sorted(set(trial.tried))
    with pytest.raises(TrainError, match=r"the nearest is 0\.6"):
        room._within_loss(path, 0.001, 3.0, Worse(), Silent())


def two() -> list[Sensitivity]:
    """Two matrices with three choices each, convex."""

    def matrix(name: str, *points: tuple[int, float]) -> Sensitivity:
        return Sensitivity(name=name, choices=tuple(Choice(kind=f"k{b}", bytes=b, nats=n) for b, n in points))

    return [matrix("a", (10, 0.5), (20, 0.1), (40, 0.0)), matrix("b", (10, 0.06), (30, 0.01), (60, 0.0))]


def test_exchanges_are_the_best_at_every_number_of_bytes() -> None:
    found = two()
    everything = [
        dict(zip("ab", pair, strict=True)) for pair in itertools.product(*(s.choices for s in found))
    ]
    steps = list(room._exchanges(found))
    assert len(steps) == 5
    for chosen in steps:
        best = min(room._nats(c) for c in everything if room._bytes(c) <= room._bytes(chosen))
        assert room._nats(chosen) == pytest.approx(best)


def test_what_a_matrix_costs_is_the_divergence(home: Home) -> None:
    model = exportable(home[2], home[1])
    assert isinstance(model, GPT)
    probe = room._Probe(model, home[1])
    weight = model.lm_head.weight
    before = weight.detach().clone()
    assert probe.nats(weight, before.numpy()) == pytest.approx(0.0, abs=1e-6)
    values, kind = stored(before.numpy(), "q4_0")
    changed = torch.from_numpy(restored(values, kind))
    found = probe.nats(weight, changed.numpy())
    assert torch.equal(weight, before)
    with torch.no_grad():
        p = model(probe.ids).log_softmax(-1)
        weight.copy_(changed)
        q = model(probe.ids).log_softmax(-1)
        weight.copy_(before)
    assert found == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
