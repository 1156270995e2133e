"""The tuning from the command line: what is printed, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_tune import laid_out

from e2e.commands import refused
from isoflop.records import Corpus, RunConfig
from isoflop.store import Project
from isoflop.trials import Tuning
from isoflop.variant import Variant


@pytest.fixture
def home(tmp_path: Path, corpus: Corpus) -> Path:
    """A project with a corpus."""
    project = Project(tmp_path / "p")
    (project.folder / "corpora").mkdir()
    (project.folder / "corpora" / corpus.id).symlink_to(corpus.folder, target_is_directory=True)
    project.put("corpus", corpus, corpus.id)
    return project.folder


@pytest.mark.parametrize("on_ray", [False, True])
def test_a_tuning_is_a_table_an_answer_and_a_record(  # type: ignore[no-untyped-def]
    isoflop, home: Path, corpus: Corpus, small: RunConfig, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest, on_ray: bool,
) -> None:  # fmt: skip
    ids: list[str] = []

    def small_layout(*_: object, key: str, variant: Variant, **__: object) -> object:
        ids.append(key)
        assert variant.changes == ("cooldown=0.5",)
        layout = laid_out(corpus, small, planned=2)
        object.__setattr__(layout, "tuning", layout.tuning.model_copy(update={"id": key}))
        return layout

    monkeypatch.setattr("isoflop.tuning.lay_out", small_layout)
    ray = ["--ray", request.getfixturevalue("nodes").address] if on_ray else []
    words = ("tune", "--budget", "5e12flops", "--values", "lr_head,lr_matrix", "--project", home,
             "--set", "cooldown=0.5", *ray)  # fmt: skip
    answer = isoflop(*words)
    assert answer.code == 0, answer.err
    assert "tune done in" in answer.err
    assert ("connecting to Ray" in answer.err) == on_ray
    done = Project(home).get("tuning", ids[0], Tuning)
    assert done is not None
    assert len(done.trials) == 2
    assert "2 trials of 2 x 32" in answer.out
    assert "0, the recipe" in answer.out
    assert done.sentence in " ".join(answer.out.split())
    assert ("isoflop sweep --set" in answer.out) == done.better
    again = isoflop(*words, "--json")
    assert "nothing to do" in again.err
    assert Tuning.model_validate(json.loads(again.out)) == done
    assert len(ids) == 1
    shown = isoflop("show", done.id, "--project", home)
    assert Tuning.from_json(shown.out) == done


def test_what_to_type_is_what_was_found(
    corpus: Corpus, small: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    from isoflop.cli.tune import _show
    from isoflop.trials import Trial

    own = {"lr_matrix": small.lr_matrix, "lr_head": small.lr_head, "batch_tokens": 256, "warmup_tokens": 1024}
    values = [own, {"lr_matrix": 0.0573, "lr_head": 0.04, "batch_tokens": 512, "warmup_tokens": 1024}]
    trials = tuple(
        Trial(number=n, values=v, state="done", losses=(3.3, 3.2, 3.1 - n), runs=(), flops=1e9)
        for n, v in enumerate(values)
    )  # fmt: skip
    tuning = laid_out(corpus, small).tuning
    names = tuple(own)
    _show(tuning.model_copy(update={"trials": trials, "values": names, "best": 1, "better": True}))
    out = capfd.readouterr().out
    settings = "--set lr_matrix=0.0573 --set lr_head=x2 --set batch_tokens=x2 --set warmup_tokens=x0.5"
    assert f"isoflop sweep {settings}\n" in out
    assert "found at width 32" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--values", "lr_matrix,lr_rate"), "'lr_rate' is not a value that is tuned"),
        (("--values", ","), "there is no value to tune"),
        (("--budget", "1e9flops"), "is too little for a search: 8 trials"),
        (("--budget", "1e12flops", "--trials", 1), "fewer than 2"),
        (("--seeds", 2), "2 seeds cannot tell"),
        (("--width", 0), "a width of 0"),
        (("--budget", "soon"), "'soon' is not a budget"),
        (("--family", "gtp2"), "no family 'gtp2'"),
        (("--set", "lr_rate=1"), "no 'lr_rate' of --set"),
        (("--set", "lr_head=x2"), "lr_head cannot be both searched and set"),
    ],
)
def test_bad_input(isoflop, home: Path, words: tuple[object, ...], says: str) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("tune", *words, "--project", home), says)
    assert not (home / "tune.db").exists()


def test_without_optuna_or_a_corpus(  # type: ignore[no-untyped-def]
    isoflop, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project(tmp_path / "empty")
    refused(isoflop("tune", "--project", tmp_path / "empty"), "has no corpus yet")
    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = isoflop("tune", "--project", home)
    refused(answer, "optuna, which is not installed")
    assert "pip install 'isoflop[tune]'" in answer.err
