"""Sixteen bits: close to float32 where it must be, and a scale that survives overflow, kills and restarts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hearing import Heard, Kept, stops_after
from torch.overrides import TorchFunctionMode

from isoflop import flops
from isoflop.devices import preferred_precision
from isoflop.errors import TrainError
from isoflop.families import find
from isoflop.gpt import LinearCrossEntropy
from isoflop.interrupt import Interrupted
from isoflop.precision import Precision, check_precision, has_bf16_units
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, RunConfig
from isoflop.train import train, train_trunk
from isoflop.trainer import Trainer

CPU = torch.device("cpu")


def tiny(corpus: Corpus, **changes: object) -> RunConfig:
    model = shape(32, corpus.vocab_size, n_layers=2, context=32)
    return recipe(model, 12 * 64, batch_tokens=64, eval_tokens=512, **changes)


@pytest.fixture
def fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets fp16 run here, as it does on a GPU."""
    monkeypatch.setattr("isoflop.trainer.check_precision", lambda *_: None)


def test_bf16_learns_as_float32_does_and_keeps_float32_weights(corpus: Corpus) -> None:
    plain, low = (Trainer(tiny(corpus, precision=name), corpus, Silent()) for name in ("float32", "bf16"))
    losses = [[t.train_step(12 * 64) for _ in range(12)] for t in (plain, low)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1][-1] < losses[1][0] - 0.05
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    for optimizer in low.optimizers:
        moments = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
        assert {v.dtype for v in moments} == {torch.float32}


def test_the_share_of_the_peak_is_that_of_the_runs_own_precision(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {"float32": 1e9, "bf16": 5e9}
    monkeypatch.setattr(flops, "matmul_peak", lambda threads, precision: peaks[precision])
    for precision, peak in peaks.items():
        run = train(tiny(corpus, precision=precision), corpus, tmp_path / precision)
        assert run.peak_flops_per_second == peak
        assert run.peak_share == pytest.approx(run.flops_spent / run.seconds_train / peak)


class Products(TorchFunctionMode):
    """Keeps the types of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "matmul" in function.__name__:
            self.types |= {x.dtype for x in args}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_peak_is_measured_in_a_precision(precision: str, dtype: torch.dtype) -> None:
    with Products() as seen:
        assert flops.matmul_peak(1, precision, seconds=0.001) > 0
    assert seen.types == {dtype}


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_chunked_cross_entropy_under_autocast(dtype: torch.dtype, close: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 16, generator=generator, requires_grad=True)
    weight = torch.randn(40, 16, generator=generator, requires_grad=True)
    y = torch.randint(0, 40, (600,), generator=generator)
    reference = torch.autograd.grad(F.cross_entropy(x @ weight.T, y, label_smoothing=0.1), (x, weight))
    with torch.autocast("cpu", dtype):
        loss = LinearCrossEntropy.apply(x, weight, y, 0.1)  # type: ignore[no-untyped-call]
    found = torch.autograd.grad(loss, (x, weight))
    assert loss.dtype == torch.float32
    for a, b in zip(found, reference, strict=True):
        assert a.dtype == torch.float32
        assert 0 < (a - b).norm() < close * b.norm()


def test_a_tiny_gradient_survives_fp16() -> None:
    """Of a large batch each token's is below what fp16 holds, 6e-8."""
    x = torch.full((1 << 15, 4), 0.1, requires_grad=True)
    weight = torch.full((64, 4), 0.1, requires_grad=True)
    y = torch.zeros(1 << 15, dtype=torch.long)
    with torch.autocast("cpu", torch.float16):
        loss = LinearCrossEntropy.apply(x, weight * torch.linspace(1, 2, 64)[:, None], y)  # type: ignore[no-untyped-call]
    (grad,) = torch.autograd.grad(loss, x)
    assert 0 < grad.abs().max() < 6e-6
    assert (grad != 0).all()


def test_what_a_device_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    with pytest.raises(TrainError, match="fp16 is for a GPU"):
        Trainer(tiny(corpus, precision="fp16"), corpus, Silent())
    for found, lines in (({"amx_bf16": True}, 0), ({"amx_bf16": False}, 1), ({}, 1)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        heard = Heard()
        check_precision("bf16", CPU, heard)
        assert len(heard.lines) == lines
        assert has_bf16_units(CPU) == (lines == 0)
        check_precision("float32", CPU, heard)
        assert len(heard.lines) == lines


@pytest.mark.parametrize(
    ("units", "wanted"),
    [
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"sve_bf16": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_the_recipe_takes_bf16_for_our_decoder_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, units: dict[str, bool], wanted: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    monkeypatch.setattr("isoflop.devices.preferred_precision", preferred_precision)
    assert recipe(shape(64, 512), 1000).precision == wanted
    assert recipe(shape(64, 512), 1000, precision="float32").precision == "float32"
    assert recipe(find("gpt2").shape(64, 512), 1000).precision == "float32"


def test_a_gpu_without_units_for_bf16_has_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoflop.devices.device_for", lambda: torch.device("cuda"))
    for found, wanted in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda found=found, **_: found)
        assert preferred_precision() == wanted


@pytest.mark.parametrize("head_dim", [32, 64])
def test_attention_of_small_heads_has_32_bits_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, corpus: Corpus, head_dim: int
) -> None:
    seen: list[torch.dtype] = []

    def attention(q: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        low = torch.is_autocast_enabled("cpu")
        seen.append(torch.get_autocast_dtype("cpu") if low else q.dtype)
        return real(q, *rest, **options)

    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    model = shape(64, corpus.vocab_size, context=32).model_copy(
        update={"head_dim": head_dim, "n_heads": 64 // head_dim, "n_kv_heads": 64 // head_dim}
    )
    config = recipe(model, 640, batch_tokens=64, precision="bf16")
    assert math.isfinite(Trainer(config, corpus, Silent()).train_step(640))
    assert set(seen) == {torch.float32 if head_dim == 32 else torch.bfloat16}


def stepped(gradients: list[float]) -> tuple[list[float], Precision]:
    """Two weights with an optimizer each, after steps in which the second's gradient is 1."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in parameters]
    used = Precision("fp16", CPU, optimizers)
    for gradient in gradients:
        used.backward(parameters[0].sum() * gradient + parameters[1].sum())
        used.unscale()
        used.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    return [float(p.detach()) for p in parameters], used


def test_a_step_with_an_infinite_gradient_is_skipped_by_all_and_the_scale_halved() -> None:
    values, used = stepped([1.0, 2.0])
    assert values == [-3.0, -2.0]
    assert not used.skipped
    start = used.scaler.get_scale()
    values, used = stepped([1.0, math.inf])
    assert values == [-1.0, -1.0]
    assert used.skipped
    assert used.scaler.get_scale() == start / 2
    assert not used.failed(math.inf)
    assert stepped([math.inf, 1.0])[0] == [-1.0, -1.0]


def test_a_run_whose_every_step_is_skipped_has_failed() -> None:
    _, used = stepped([math.inf] * 16)
    assert used.scaler.get_scale() == 1.0
    assert not used.failed(1.0)
    _, used = stepped([math.inf] * 17)
    assert used.failed(1.0)
    plain = Precision("float32", CPU, [])
    assert plain.failed(math.nan)
    assert not plain.failed(1.0)


def overflows_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of that step, and with it the gradients, are infinite."""
    real = Trainer.gradients

    def gradients(self: Any, number: int, context: int | None = None) -> torch.Tensor:
        loss = real(self, number, context)
        if number != step:
            return loss
        for p in self.model.parameters():
            p.grad.fill_(math.inf)
        return loss * math.inf

    monkeypatch.setattr(Trainer, "gradients", gradients)


def test_a_skipped_step_does_not_go_back(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp16: None
) -> None:
    overflows_at(5, monkeypatch)
    config = tiny(corpus, precision="fp16")
    run = train(config, corpus, tmp_path / "fp16")
    assert run.rate_scale == 1.0
    assert all(math.isfinite(p.loss) for p in run.curve)
    assert run.loss < 6.2
    with pytest.raises(TrainError, match="twice"):
        train(tiny(corpus), corpus, tmp_path / "float32")


def test_fp16_goes_on_with_the_same_bits(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp16: None
) -> None:
    """Killed after the scale was halved: with the scale of the beginning, other steps would follow."""
    overflows_at(3, monkeypatch)
    config, kept = tiny(corpus, precision="fp16"), Kept()
    with pytest.raises(Interrupted):
        train_trunk(config, [config.tokens], corpus, tmp_path / "killed", stopping=stops_after(7))
    scales: list[float] = []
    real = Precision.step

    def step(self: Precision) -> None:
        scales.append(self.scaler.get_scale())
        real(self)

    monkeypatch.setattr(Precision, "step", step)
    train_trunk(config, [config.tokens], corpus, tmp_path / "killed", keep=kept)
    assert scales[0] == 2.0**15
    train_trunk(config, [config.tokens], corpus, tmp_path / "straight", keep=kept)
    assert torch.equal(*kept.weights)
