"""What the options of a run do to its weights, and what they leave alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hearing import Kept

from isoflop import flops
from isoflop.devices import run_ranks, whole_machine
from isoflop.errors import TrainError
from isoflop.evaluate import heldout
from isoflop.families import FAMILIES, OWN, family_of
from isoflop.gpt import GPT, LinearCrossEntropy
from isoflop.identity import run_id
from isoflop.places import here
from isoflop.plan import COMPILE_FROM_SECONDS, SLOW_CORE, compiled_if_it_pays
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, Paced, RunConfig, Throughput
from isoflop.store import Project
from isoflop.throughput import machine, probe
from isoflop.train import train_trunk
from isoflop.trainer import Trainer

STEPS = 4


def small_run(corpus: Corpus, name: str = OWN.name, **changes: object) -> RunConfig:
    """Some steps of 8 rows."""
    model = FAMILIES[name].shape(64, corpus.vocab_size, n_layers=2, context=32)
    return recipe(model, STEPS * 256, batch_tokens=256, eval_tokens=1024, **changes)


def weights(config: RunConfig, corpus: Corpus) -> torch.Tensor:
    """All of them after the run's steps, flattened."""
    trainer = Trainer(config, corpus, Silent())
    for _ in range(STEPS):
        trainer.train_step(config.tokens)
    return torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach()


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


# -- accumulation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["isoflop", "llama", "modernbert"])
def test_a_batch_in_parts_is_the_batch(corpus: Corpus, name: str) -> None:
    """Of models without biases: a key's has no gradient but rounding, of which Adam makes a whole step."""
    whole = weights(small_run(corpus, name), corpus)
    for parts in (2, 8):
        assert apart(whole, weights(small_run(corpus, name, accumulate=parts), corpus)) < 1e-6
    assert apart(whole, weights(small_run(corpus, name, seed=1), corpus)) > 1e-3


def test_ranks_do_their_rows_in_parts(corpus: Corpus) -> None:
    config = small_run(corpus, "modernbert", ranks=2)
    whole = run_ranks(2, partial(weights, config, corpus))
    parts = run_ranks(2, partial(weights, config.model_copy(update={"accumulate": 2}), corpus))
    assert apart(whole, parts) < 1e-6


def test_masks_do_not_depend_on_the_parts(corpus: Corpus) -> None:
    whole, parts = (Trainer(small_run(corpus, "bert", accumulate=n), corpus, Silent()) for n in (1, 4))
    for a, b in zip(whole.examples(3), parts.examples(3), strict=True):
        assert torch.equal(a, b)


def test_parts_that_do_not_divide_the_rows_are_refused(corpus: Corpus) -> None:
    with pytest.raises(TrainError, match="the 8 rows of a batch that a rank takes are not 3 equal parts"):
        Trainer(small_run(corpus, accumulate=3), corpus, Silent())
    for parts, ranks in ((8, 1), (4, 2), (3, 1)):
        assert whole_machine(small_run(corpus, accumulate=parts)).ranks in (1, ranks)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"accumulate": 0}, "accumulate is 0, and must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0, and must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"patience": -1}, "patience is -1"),
        ({"evaluate_every": 512}, "without patience"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
    ],
)
def test_options_that_cannot_be(corpus: Corpus, changes: dict[str, object], says: str) -> None:
    with pytest.raises(TrainError, match=says):
        Trainer(small_run(corpus).model_copy(update=changes), corpus, Silent())


# -- activations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["isoflop", "gpt2", "llama", "bert", "modernbert", "mamba2"])
def test_recomputed_activations_give_the_same_bits(corpus: Corpus, name: str) -> None:
    dropout = 0.0 if name == "mamba2" else 0.1
    kept = Trainer(small_run(corpus, name, dropout=dropout), corpus, Silent())
    again = Trainer(small_run(corpus, name, dropout=dropout, checkpoint_activations=True), corpus, Silent())
    assert float(kept.gradients(0)) == float(again.gradients(0))
    for a, b in zip(kept.model.parameters(), again.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


def held(model: GPT, ids: torch.Tensor) -> int:
    """Bytes that a forward pass leaves allocated for the backward pass."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = model.loss(ids, ids)
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


def test_recomputed_activations_take_less_memory_as_estimated(corpus: Corpus) -> None:
    model = shape(64, corpus.vocab_size, n_layers=8, context=128)
    config = recipe(model, 0, batch_tokens=1024)
    ids = torch.zeros(8, 128, dtype=torch.long)
    measured, estimated = [], []
    for option in (False, True):
        made = config.model_copy(update={"checkpoint_activations": option})
        trainer = Trainer(made, corpus, Silent())
        assert isinstance(trainer.model, GPT)
        measured.append(held(trainer.model, ids))
        estimated.append(flops.training_memory_bytes(made))
    assert measured[1] < 0.4 * measured[0]
    saved = flops.BYTES_FLOAT32 * 1024 * flops.counts(model).saved
    one_block = (
        saved // model.n_layers
    )  # of which the measurement knows nothing: it comes in the backward pass
    gone = estimated[0] - estimated[1]
    assert gone == pytest.approx(measured[0] - measured[1] - one_block, rel=0.15)
    parts = flops.training_memory_bytes(config.model_copy(update={"accumulate": 4}))
    assert estimated[0] - parts == pytest.approx(0.75 * saved, rel=1e-6)
    assert flops.flops_per_token(config.model) == flops.flops_per_token(made.model)


# -- dropout --------------------------------------------------------------------------------------------


def test_a_branch_with_dropout_is_the_run_of_its_own_length(corpus: Corpus, tmp_path: Path) -> None:
    config, counts = small_run(corpus, dropout=0.2), [STEPS * 256, 2 * STEPS * 256]
    together, alone = Kept(), Kept()
    train_trunk(config, counts, corpus, tmp_path / "both", keep=together)
    for tokens, weights in zip(counts, together.weights, strict=True):
        torch.manual_seed(tokens)  # whatever was drawn before
        train_trunk(
            config.model_copy(update={"tokens": tokens}), [tokens], corpus, tmp_path / str(tokens), keep=alone
        )
        assert torch.equal(weights, alone.weights[-1])


def test_dropout_draws_anew_each_step_and_never_in_scores(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(small_run(corpus, dropout=0.3, lr_matrix=0.0), corpus, Silent())
    assert float(trainer.gradients(0)) == float(trainer.gradients(0))
    same = trainer.examples(0)
    monkeypatch.setattr(trainer, "examples", lambda step, context: same)
    trainer.train_step(1024)
    assert float(trainer.gradients(1)) != float(trainer.gradients(2))
    first, second = (heldout(trainer.model, corpus, eval_tokens=1024) for _ in range(2))
    assert first == second
    assert trainer.model.training


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "modernbert"])
def test_a_config_of_transformers_gets_the_dropout(corpus: Corpus, name: str) -> None:
    model = small_run(corpus, name).model
    plain, dropped = (family_of(model).build(model, 0, dropout=p).train() for p in (0.0, 0.5))
    ids = torch.zeros(4, 32, dtype=torch.long)
    for a, b in zip(plain.parameters(), dropped.parameters(), strict=True):
        assert torch.equal(a, b)
    assert float(plain.loss(ids, ids)) == float(plain.loss(ids, ids))
    assert float(dropped.loss(ids, ids)) != float(dropped.loss(ids, ids))
    assert float(dropped.eval().loss(ids, ids)) == float(plain.loss(ids, ids))


def test_an_architecture_without_dropout_says_so(corpus: Corpus) -> None:
    with pytest.raises(TrainError, match="a mamba2 model has no dropout"):
        Trainer(small_run(corpus, "mamba2", dropout=0.1), corpus, Silent())


# -- label smoothing ------------------------------------------------------------------------------------


def test_smoothed_cross_entropy_equals_torch_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 50, (700,), generator=generator)
    ours = LinearCrossEntropy.apply(x, weight, y, 0.2)  # type: ignore[no-untyped-call]
    theirs = F.cross_entropy(x @ weight.T, y, label_smoothing=0.2)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    mine, reference = (torch.autograd.grad(3.0 * loss, (x, weight)) for loss in (ours, theirs))
    for a, b in zip(mine, reference, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["isoflop", "bert"])
def test_smoothing_is_of_the_training_loss_alone(corpus: Corpus, name: str) -> None:
    plain, smooth = (
        Trainer(small_run(corpus, name, label_smoothing=s), corpus, Silent()) for s in (0.0, 0.3)
    )
    assert heldout(plain.model, corpus, eval_tokens=1024) == heldout(smooth.model, corpus, eval_tokens=1024)
    inputs, targets = smooth.examples(0)
    with torch.no_grad():
        logits = smooth.model(inputs).flatten(0, 1)
        expected = F.cross_entropy(logits, targets.flatten(), label_smoothing=0.3)
    assert float(smooth.gradients(0)) == pytest.approx(float(expected), rel=1e-5)
    assert float(plain.gradients(0)) != float(smooth.gradients(0))


# -- ids and speeds -------------------------------------------------------------------------------------


def test_ids_and_speeds_of_before_stay(corpus: Corpus) -> None:
    config = small_run(corpus)
    assert not set(RunConfig.later) & set(config.model_dump(mode="json"))
    for change in (
        {"accumulate": 2},
        {"precision": "bf16"},
        {"dropout": 0.1},
        {"checkpoint_activations": True},
    ):
        other = config.model_copy(update=change)
        assert run_id(other, corpus) != run_id(config, corpus)
        assert other.speed_key(1, "m") != config.speed_key(1, "m")


def test_a_speed_is_that_of_the_options(corpus: Corpus) -> None:
    config = small_run(corpus, accumulate=2, checkpoint_activations=True)
    measured = probe(config, corpus, packed=1, seconds=0.0)
    assert measured.key == config.speed_key(1, machine())
    assert Throughput.from_json(measured.to_json()) == measured
    assert (measured.accumulate, measured.checkpoint_activations) == (2, True)


def test_a_run_is_compiled_where_that_pays(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, config = Project(tmp_path / "p"), small_run(corpus)
    assert compiled_if_it_pays(project, corpus, config, Silent(), here()) == config
    assert not project.all("throughput", Throughput)  # a short run is not worth measuring
    per_token = flops.flops_per_token(config.model)
    long = config.model_copy(update={"tokens": int(2 * COMPILE_FROM_SECONDS * SLOW_CORE / per_token)})
    speeds = {False: long.tokens / 1000, True: long.tokens / 500}  # 1,000 seconds, or 500
    for compiling, expected in ((100.0, True), (800.0, False)):
        for compiled, speed in speeds.items():
            kept = {n: v for n, v in long.model_copy(update={"compile": compiled}) if n in Paced.model_fields}
            measured = Throughput(
                **kept, packed=1, machine=machine(), params=1, tokens_per_second=speed,
                eval_tokens_per_second=speed,
                compile_seconds=compiling * compiled, memory_bytes=0,
            )  # fmt: skip
            project.put("throughput", measured, measured.key)
        monkeypatch.setattr("isoflop.plan.has_compiler", lambda: True)
        assert compiled_if_it_pays(project, corpus, long, Silent(), here()).compile == expected
