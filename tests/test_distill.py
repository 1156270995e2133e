"""Distillation through the training loop: exact costs, the same after an interruption, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import STDLIB

from isoflop import flops
from isoflop.continued import Past
from isoflop.corpus import build_corpus
from isoflop.errors import CorruptError, IsoflopError, ProjectError, TrainError
from isoflop.evaluate import heldout
from isoflop.export import load_pretrained, save_pretrained
from isoflop.families import find
from isoflop.interrupt import Interrupted
from isoflop.model import LanguageModel
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Run, RunConfig
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.teaching.distilling import Teaching, Told
from isoflop.teaching.divergences import DIVERGENCES, Lesson
from isoflop.teaching.features import matched
from isoflop.train import train, train_trunk
from isoflop.trainer import Trainer
from isoflop.transforms import Transform
from isoflop.transforms.distill import distill, student
from isoflop.variant import Variant

SMALL = Variant.of(
    find("isoflop"), ["batch_tokens=256", "model.context=64", "eval_tokens=8192", "warmup_tokens=1024"]
)


@pytest.fixture(scope="session")
def teacher(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that has seen far more than the students will."""
    return trained(corpus, tmp_path_factory.mktemp("teacher"), width=64, steps=600)


@pytest.fixture(scope="session")
def second(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(corpus, tmp_path_factory.mktemp("second"), width=32, steps=100)


def trained(corpus: Corpus, folder: Path, *, width: int, steps: int) -> Path:
    model = shape(width, corpus.vocab_size, n_layers=2, context=64)
    config = recipe(model, steps * 512, batch_tokens=512, warmup_tokens=2048, eval_tokens=2048)
    train(config, corpus, folder / "run", keep=lambda m, run: save_pretrained(m, corpus, folder / "model"))
    return folder / "model"


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process."""
    monkeypatch.setattr("isoflop.devices.cores", lambda: 1)


@pytest.fixture
def home(tmp_path: Path) -> Project:
    return Project(tmp_path / "home")


def hash_of(folder: Path) -> str:
    return content_hash(folder)[:HASH_DIGITS]


def taught(config: RunConfig, *teachers: Path, lesson: Lesson | None = None) -> tuple[RunConfig, Past]:
    lesson = lesson or Lesson()
    update = {
        "teachers": tuple(map(hash_of, teachers)),
        "teacher_weight": lesson.weight,
        "temperature": lesson.temperature,
        "divergence": lesson.divergence,
        "teacher_topk": lesson.topk,
        "feature_weight": lesson.features,
    }
    return config.model_copy(update=update), Past(teachers=teachers)


def made(
    home: Project, corpus: Corpus, *teachers: Path, lesson: Lesson | None = None, cache: float = 0.0,
    **options: Any,
) -> Transform:  # fmt: skip
    """A small student in this process."""
    asked: dict[str, Any] = {"tokens": 40 * 256, "variant": SMALL, **options}
    if "start" not in asked:
        asked = {"width": 32, "layers": 2, **asked}
    config, past = student(home, corpus, **asked)
    return distill(home, corpus, teachers, config, past, lesson=lesson, cache_bytes=cache)


def steps(config: RunConfig, corpus: Corpus, past: Past | None, count: int = 4) -> torch.Tensor:
    trainer = Trainer(config, corpus, Silent(), past)
    for _ in range(count):
        trainer.train_step(config.tokens)
    return torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach()


def test_without_weight_it_is_plain_training(corpus: Corpus, small: RunConfig, teacher: Path) -> None:
    plain = steps(small, corpus, None)
    same = steps(*both(small, corpus, teacher, Lesson(0.0, 2.0)))
    other = steps(*both(small, corpus, teacher, Lesson(0.5, 2.0)))
    assert float((same - plain).norm() / plain.norm()) < 1e-5
    assert float((other - plain).norm() / plain.norm()) > 1e-3


def both(config: RunConfig, corpus: Corpus, teacher: Path, lesson: Lesson) -> tuple[RunConfig, Corpus, Past]:
    asked, past = taught(config, teacher, lesson=lesson)
    return asked, corpus, past


def test_likeliest_tokens_are_kept_under_autocast(corpus: Corpus, small: RunConfig, teacher: Path) -> None:
    low = small.model_copy(update={"precision": "bf16"})
    few = steps(*both(low, corpus, teacher, Lesson(topk=256)))
    exact = steps(*both(small, corpus, teacher, Lesson(topk=256)))
    assert float((few - exact).norm() / exact.norm()) < 0.05


def test_a_batch_in_parts_is_the_batch(corpus: Corpus, small: RunConfig, teacher: Path) -> None:
    whole = steps(*both(small, corpus, teacher, Lesson()))
    parts = steps(*both(small.model_copy(update={"accumulate": 4}), corpus, teacher, Lesson()))
    assert float((whole - parts).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_far_better_teacher_helps(
    corpus: Corpus, small: RunConfig, teacher: Path, tmp_path: Path, divergence: str
) -> None:
    plain = train(small, corpus, tmp_path / "plain")
    config, past = taught(small, teacher, lesson=Lesson(0.5, 1.0, divergence))
    run = train(config, corpus, tmp_path / "taught", past=past)
    assert run.loss < plain.loss
    assert run.id != plain.id


@pytest.mark.parametrize("lesson", [Lesson(0.8, 2.0), Lesson(features=1.0)])
def test_interrupted_it_ends_with_the_same_bits(
    corpus: Corpus, small: RunConfig, teacher: Path, second: Path, lesson: Lesson, tmp_path: Path
) -> None:
    config, past = taught(small, teacher, second, lesson=lesson)
    kept: list[dict[str, torch.Tensor]] = []

    def keep(model: LanguageModel, run: Run) -> None:
        kept.append({name: w.clone() for name, w in model.state_dict().items()})

    asked = iter([False] * 17 + [True])
    with pytest.raises(Interrupted):
        train_trunk(config, [config.tokens], corpus, tmp_path / "a", past=past, stopping=lambda: next(asked))
    (after,) = train_trunk(config, [config.tokens], corpus, tmp_path / "a", past=past, keep=keep)
    (straight,) = train_trunk(config, [config.tokens], corpus, tmp_path / "b", past=past, keep=keep)
    assert after.loss == straight.loss
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    two = config.model_copy(update={"ranks": 2})
    (joined,) = train_trunk(two, [two.tokens], corpus, tmp_path / "c", past=past)
    assert joined.loss == pytest.approx(straight.loss, abs=2e-2)  # the same batches, other sums
    assert joined.flops_teachers == straight.flops_teachers


def test_the_teachers_share_of_the_cost_is_exact(
    corpus: Corpus, small: RunConfig, teacher: Path, second: Path, tmp_path: Path
) -> None:
    """By torch's counter, whose backward pass of attention is that of the formula."""
    config, past = taught(small.model_copy(update={"trunk_context": 32}), teacher, second)
    run = train(config, corpus, tmp_path / "run", past=past)
    shapes = [load_pretrained(folder).config for folder in (teacher, second)]
    cut = [m.model_copy(update={"context": 32}) for m in shapes]
    trunk = config.trunk_steps(60) * 256
    wanted = sum(flops.flops_per_token(m) for m in cut) * trunk / 3
    wanted += sum(flops.flops_per_token(m) for m in shapes) * (60 * 256 - trunk) / 3
    assert run.flops_teachers == pytest.approx(wanted, rel=1e-12)
    assert run.flops == pytest.approx(flops.run_flops(config) + wanted)
    assert run.flops_spent == pytest.approx(run.flops)
    assert Run.from_json(run.to_json()) == run


def test_what_a_teacher_computes_is_what_torch_counts(corpus: Corpus, teacher: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = load_pretrained(teacher)
    ids = torch.zeros(3, 64, dtype=torch.long)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features, _ = model.features(ids, ids)
        features @ model.head.T
    assert counter.get_total_flops() == 3 * 64 * flops.forward_flops_per_token(model.config)


def test_the_record_says_what_was_read_and_paid(
    home: Project, corpus: Corpus, teacher: Path, second: Path
) -> None:
    done = made(home, corpus, teacher, second)
    assert home.get("transform", done.id, Transform) == done
    assert Transform.from_json(done.to_json()) == done
    assert [s.hash for s in done.sources] == [hash_of(teacher), hash_of(second)]
    assert done.before is None is done.change
    run = home.get("run", str(done.run_id), Run)
    assert run is not None
    assert run.role == "distilled"
    assert done.flops["training"] == pytest.approx(flops.run_flops(run.config))
    assert done.flops["teacher"] == pytest.approx(run.flops_teachers)
    assert done.after.loss == pytest.approx(run.loss, abs=1e-5)
    first = done.sources[0].scores
    assert first is not None
    assert first.loss == pytest.approx(heldout(load_pretrained(teacher), corpus, eval_tokens=8192).loss)
    assert str(home.folder) not in done.to_json()
    assert made(home, corpus, teacher, second) == done  # nothing is done twice
    assert made(home, corpus, teacher, second, seed=1).id != done.id
    assert made(home, corpus, teacher, second, lesson=Lesson(temperature=2.0)).id != done.id


def test_a_student_goes_on_and_a_result_is_a_model_like_any_other(
    home: Project, corpus: Corpus, teacher: Path, second: Path
) -> None:
    done = made(home, corpus, teacher, start=second)
    assert done.before is not None
    assert done.change == pytest.approx(done.after.loss - done.before.loss, abs=1e-5)
    assert done.change is not None
    assert done.change_se is not None
    assert done.change < 0 < done.change_se
    again = made(home, corpus, home.folder / done.model, start=home.folder / done.model)
    assert again.sources[0].hash == again.sources[1].hash == hash_of(home.folder / done.model)
    assert again.before == done.after


def test_a_model_of_transformers_teaches_and_learns(
    home: Project, corpus: Corpus, teacher: Path, tmp_path: Path
) -> None:
    """Of more tokens than the tokenizer has, as many folders are."""
    family = find("gpt2")
    size = family.shape(64, corpus.vocab_size + 24, n_layers=2, context=64)
    save_pretrained(family.build(size, 0), corpus, tmp_path / "gpt2")
    done = made(home, corpus, tmp_path / "gpt2")
    asked = size.model_copy(update={"vocab_size": corpus.vocab_size})
    run = home.get("run", str(done.run_id), Run)
    assert run is not None
    assert done.flops["teacher"] == pytest.approx(run.tokens * flops.flops_per_token(asked) / 3)
    learner = family.shape(64, corpus.vocab_size, n_layers=2, context=64)
    save_pretrained(family.build(learner, 0), corpus, tmp_path / "learner")
    learned = made(home, corpus, teacher, start=tmp_path / "learner")
    assert learned.change is not None
    assert learned.change < -0.2


def spoiled(teacher: Path, folder: Path, spoil: Callable[[LanguageModel], object], corpus: Corpus) -> Path:
    model = load_pretrained(teacher)
    with torch.no_grad():
        spoil(model)
    save_pretrained(model, corpus, folder)
    return folder


def test_teachers_that_cannot_teach_are_refused(
    home: Project, corpus: Corpus, teacher: Path, tmp_path: Path
) -> None:
    other = build_corpus(
        CorpusConfig(sources=(str(STDLIB / "json"),), vocab_size=400, heldout_share=0.3), tmp_path / "corpora"
    )
    with pytest.raises(TrainError, match="the tokenizer of the teacher") as caught:
        made(home, other, teacher)
    assert "sequence-level" in caught.value.hint
    broken = spoiled(teacher, tmp_path / "nan", lambda m: m.head[3].fill_(float("nan")), corpus)
    with pytest.raises(CorruptError, match=r"lm_head.weight of .*nan has weights that are not finite"):
        made(home, corpus, broken)
    with pytest.raises(ProjectError, match=r"no config\.json"):
        made(home, corpus, tmp_path / "nowhere")
    with pytest.raises(TrainError, match="reads 64 tokens at once, and the student 512") as caught:
        made(home, corpus, teacher, variant=Variant.of(find("isoflop"), ["eval_tokens=1024"]))
    assert "model.context=64" in caught.value.hint
    padded = find("gpt2").shape(64, corpus.vocab_size + 8, n_layers=2, context=64)
    save_pretrained(find("gpt2").build(padded, 0), corpus, tmp_path / "padded")
    with pytest.raises(
        TrainError, match=f"knows {corpus.vocab_size} tokens, and the student {padded.vocab_size}"
    ):
        made(home, corpus, teacher, start=tmp_path / "padded")
    bert = find("bert")
    masked = bert.build(bert.shape(64, corpus.vocab_size + 8, n_layers=2, context=64), 0)
    save_pretrained(masked, corpus, tmp_path / "bert")
    with pytest.raises(TrainError, match="learned the objective 'masked'"):
        made(home, corpus, tmp_path / "bert")
    assert not list(home.folder.glob("artifacts/*model*"))


def test_a_head_that_is_not_linear_is_refused(home: Project, corpus: Corpus, tmp_path: Path) -> None:
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=corpus.vocab_size, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, logit_scale=0.25,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    CohereForCausalLM(config).save_pretrained(tmp_path / "cohere")
    (tmp_path / "cohere" / "tokenizer.json").write_text((corpus.folder / "tokenizer.json").read_text())
    with pytest.raises(TrainError, match="not simply its hidden states times its head"):
        made(home, corpus, tmp_path / "cohere")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lesson": Lesson(weight=1.5)}, "teacher_weight is 1.5"),
        ({"lesson": Lesson(temperature=0.0)}, "temperature is 0.0"),
        ({"lesson": Lesson(temperature=float("nan"))}, "temperature is nan"),
        ({"lesson": Lesson(features=-1.0)}, "feature_weight is -1"),
        ({"lesson": Lesson(features=1.0, topk=8)}, "teacher_topk does not go with feature_weight"),
        ({"lesson": Lesson(topk=512)}, "teacher_topk is 512"),
        ({"lesson": Lesson(topk=8), "cache": 100.0}, "100 bytes do not hold"),
        ({"lesson": Lesson(divergence="hellinger")}, "no divergence 'hellinger'"),
        ({"width": None}, "needs --width or --from"),
        ({"tokens": None}, "--tokens above zero"),
        (
            {"variant": Variant.of(find("isoflop"), [*SMALL.changes, "label_smoothing=0.1"])},
            "label_smoothing",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(
    home: Project, corpus: Corpus, teacher: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(IsoflopError, match=says):
        made(home, corpus, teacher, **options)


def test_a_changed_teacher_is_noticed(corpus: Corpus, small: RunConfig, teacher: Path, second: Path) -> None:
    config, _ = taught(small, teacher)
    with pytest.raises(CorruptError, match="the run began with"):
        Trainer(config, corpus, Silent(), Past(teachers=(second,)))
    assert "teachers" not in json.loads(small.to_json())
    with pytest.raises(TrainError, match="learns from 1 teachers, and 0 are given"):
        Trainer(config, corpus, Silent())


def test_the_likeliest_tokens_teach_and_are_kept(
    home: Project, corpus: Corpus, teacher: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second student of the same teachers asks them nothing, and its cost is counted all the same."""
    asked: list[int] = []
    ask = Teaching._asked

    def counted(self: Teaching, number: int, ids: torch.Tensor) -> Told:
        asked.append(len(ids))
        return ask(self, number, ids)

    monkeypatch.setattr(Teaching, "_asked", counted)
    whole = made(home, corpus, teacher, second)
    asked.clear()
    lesson = Lesson(topk=64)
    first = made(home, corpus, teacher, second, lesson=lesson, cache=2e7)
    assert sum(asked) == 2 * 40 * 4  # each window of either teacher
    assert first.after.loss == pytest.approx(whole.after.loss, abs=0.05)
    asked.clear()
    again = made(home, corpus, teacher, second, lesson=lesson._replace(temperature=2.0), cache=2e7)
    assert not asked
    assert first.flops == whole.flops
    assert again.flops == pytest.approx({"training": whole.flops["training"], "teacher": 0.0})
    (run,) = (r for r in home.all("run", Run) if r.id == again.run_id)
    assert run.flops_teachers == pytest.approx(whole.flops["teacher"])
    assert run.flops_spent == pytest.approx(whole.flops["training"])
    assert 0 < first.measured["probability left out"] < 0.5
    assert first.measured["L1 distance"] <= 2 * first.measured["probability left out"] + 0.01
    kept = list((home.folder / "answers").glob("*/*/*"))
    assert sum(file.stat().st_size for file in kept) <= 2e7
    made(home, corpus, teacher, lesson=lesson, cache=1e5)  # room for some
    few = list((home.folder / "answers").glob("*/*/*"))
    assert 0 < sum(file.stat().st_size for file in few) <= 1e5  # the others are gone


def test_hidden_states_are_matched_through_projections_that_are_thrown_away(
    home: Project, corpus: Corpus, small: RunConfig, teacher: Path, second: Path, tmp_path: Path
) -> None:
    config, past = taught(small, teacher, second, lesson=Lesson(features=2.0))
    trainer = Trainer(config, corpus, Silent(), past)
    assert trainer.teaching is not None
    matching = trainer.teaching.matching
    assert matching is not None
    assert [m.weight.shape for m in matching.matrices] == [(64, 32), (64, 32), (32, 32), (32, 32)]
    ids, targets = trainer.examples(0)
    sources = trainer.sources(0, len(ids))
    with matching.listening():
        plain = trainer.teaching._loss(trainer.model, ids, targets, sources)
        hidden = [[h.clone() for h in heard] for heard in matching.heard]
    whole = trainer.teaching.loss(trainer.model, ids, targets, sources)
    parts = []
    for (number, layer, theirs), matrix in zip(matching.pairs, matching.matrices, strict=True):
        g = hidden[number][theirs]
        wanted = g / g.square().mean(-1, keepdim=True).sqrt()
        parts.append(torch.nn.functional.mse_loss(hidden[0][layer] @ matrix.weight.T, wanted))
    assert whole.item() == pytest.approx((plain + 2.0 * torch.stack(parts).mean()).item(), rel=1e-5)
    first = torch.stack(parts).mean().item()
    for _ in range(60):
        trainer.train_step(config.tokens)
    with matching.listening():
        trainer.teaching._loss(trainer.model, ids, targets, sources)
        assert matching.loss().item() < 0.7 * first
    assert not matching.heard  # evaluation is not listened to
    done = made(home, corpus, teacher, lesson=Lesson(features=1.0))
    run = home.get("run", str(done.run_id), Run)
    assert run is not None
    kept = load_pretrained(home.folder / done.model)
    assert not hasattr(kept, "projections")
    matrices = 6 * 2 * 32 * 64 * run.tokens
    assert done.flops["training"] == pytest.approx(flops.run_flops(run.config) + matrices)


@pytest.mark.parametrize(
    ("layers", "theirs", "wanted"), [(2, 4, [1, 3]), (2, 2, [0, 1]), (4, 2, [0, 0, 0, 1])]
)
def test_layers_meet_at_the_same_depth(layers: int, theirs: int, wanted: list[int]) -> None:
    assert [matched(layer, layers, theirs) for layer in range(layers)] == wanted
