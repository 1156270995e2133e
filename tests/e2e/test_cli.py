"""The commands as a user types them: good input, bad input, what is printed where."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from finished import BUDGET, LADDER, LADDER_SHARE
from postgres import Server

from e2e.commands import refused
from isoflop import checkpoint
from isoflop.cli import app
from isoflop.records import Result
from isoflop.store import Project
from isoflop.train import train_trunk

Job = tuple[Path, Result]


# -- good input ---------------------------------------------------------------------------------------


def test_help_of_every_command_has_an_example(isoflop) -> None:  # type: ignore[no-untyped-def]
    names = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert len(names) >= 15
    for name in names:
        answer = isoflop(name, "--help")
        assert answer.code == 0
        assert "Example: isoflop" in " ".join(answer.out.split()), name


def test_every_option_is_explained() -> None:
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{command.name} {parameter.name}"


def test_run_prints_one_json_object(isoflop, project: Job, sources: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    answer = isoflop(
        "run", *sources, "--budget", BUDGET, "--ladder-share", LADDER_SHARE, "--vocab", 512, "--heldout", 0.1,
        "--project", folder, "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    printed = json.loads(answer.out)
    assert Result.model_validate(printed) == result
    assert {"loss", "loss_se", "bpb", "predicted", "interval", "params", "tokens", "flops", "seconds"} <= set(
        printed
    )
    assert {"doublings", "model", "report"} <= set(printed)


@pytest.mark.parametrize(
    "words",
    [("ls",), ("fit",), ("plan", "--budget", "1e12flops"), ("sweep", "--budget", LADDER, "--dry-run")],
)
def test_parts_print_tables_and_json(isoflop, project: Job, words: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    folder = project[0]
    plain = isoflop(*words, "--project", folder)
    assert plain.code == 0, plain.err
    assert len(plain.out.splitlines()) > 5
    machine = isoflop(*words, "--project", folder, "--json")
    assert machine.code == 0
    assert json.loads(machine.out)


def test_eval_sample_show_and_report(isoflop, project: Job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    scores = json.loads(isoflop("eval", result.model, "--project", folder, "--json").out)
    assert scores["bpb"] == pytest.approx(result.bpb, rel=0.1)
    text = isoflop("sample", result.model, "--prompt", "def f(", "--tokens", 8, "--project", folder)
    assert text.out.startswith("def f(")
    shown = json.loads(isoflop("show", result.run_id[:8], "--project", folder).out)
    assert shown["loss"] == result.loss
    page = tmp_path / "page.html"
    assert isoflop("report", "--project", folder, "--out", page).out.strip() == str(page)
    assert "<html" in page.read_text()


def test_no_color_is_respected(project: Job) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "isoflop", "ls", "--project", str(project[0])],
        env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\x1b[3" not in done.stdout


def test_import_stays_light() -> None:
    code = "import sys, isoflop; assert not {'torch', 'transformers', 'scipy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- bad input ----------------------------------------------------------------------------------------


def test_missing_path(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("run", "/no/such/text", "--project", tmp_path / "p"), "/no/such/text")


@pytest.mark.parametrize("budget", ["0s", "-3m", "soon", "7 bananas", "1e-3s"])
def test_bad_budget(isoflop, tmp_path: Path, sources: tuple[str, ...], budget: str) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("run", sources[-1], "--vocab", 400, "--budget", budget, "--project", tmp_path / "p"))


def test_a_budget_too_small_for_a_ladder(isoflop, project: Job) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("sweep", "--budget", "1e9flops", "--project", project[0]), "sizes that a law needs")


@pytest.mark.parametrize("within", [0.05, 7])
def test_a_ladder_that_does_not_grow_has_no_width_to_end_at(isoflop, project: Job, within: float) -> None:  # type: ignore[no-untyped-def]
    words = ("sweep", "--budget", LADDER, "--project", project[0], "--within", within)
    refused(isoflop(*words), "--within is for a ladder that grows, and no --target was given")


def test_a_bad_ladder_share(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("run", "--ladder-share", 1.5, "--project", tmp_path / "p"), "1.5")


def test_empty_corpus(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty.txt").write_text("  \n")
    refused(isoflop("corpus", tmp_path / "empty.txt", "--project", tmp_path / "p"))


def test_a_corpus_too_small_for_the_ladder(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"A short text, number {i}, about nothing in particular.\n")
    refused(isoflop("run", tmp_path, "--vocab", 300, "--budget", "1e12flops", "--project", tmp_path / "p"))


def test_binary_file(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "image.txt").write_bytes(bytes(range(256)) * 100)
    refused(isoflop("corpus", tmp_path / "image.txt", "--project", tmp_path / "p"), "image.txt")


def test_a_line_that_is_not_json(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnot json\n')
    refused(isoflop("corpus", tmp_path / "a.jsonl", "--project", tmp_path / "p"), "a.jsonl", "2")


def test_a_missing_field(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n')
    refused(isoflop("corpus", tmp_path / "a.jsonl", "--project", tmp_path / "p"), "text")


def test_a_corrupt_tokenizer(isoflop, tmp_path: Path, sources: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    bad = tmp_path / "tokenizer.json"
    bad.write_text("{]")
    refused(isoflop("corpus", sources[-1], "--tokenizer", bad, "--project", tmp_path / "p"), "tokenizer.json")


def test_a_corrupt_ledger(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "ledger.db").write_bytes(b"this is not a database at all" * 100)
    refused(isoflop("ls", "--project", tmp_path / "p"), "ledger.db")


def test_a_project_of_a_newer_version(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    Project(tmp_path / "p")
    with sqlite3.connect(tmp_path / "p" / "ledger.db") as connection:
        connection.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")
    refused(isoflop("ls", "--project", tmp_path / "p"), "newer")


def test_no_project(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("ls", "--project", tmp_path / "nowhere"), "nowhere")


def test_a_ledger_on_a_server(isoflop, postgres: Server, sources: tuple[str, ...], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder, url = tmp_path / "p", postgres.new()
    words = ("corpus", sources[3], "--vocab", 300, "--project", folder)
    made = json.loads(isoflop(*words, "--ledger", url, "--json").out)
    assert json.loads(isoflop("show", made["id"], "--project", folder).out) == made  # it is remembered
    assert not (folder / "ledger.db").exists()
    assert isoflop(*words, "--ledger", url).code == 0
    for command in (words, ("run", sources[3], "--project", folder)):
        refused(
            isoflop(*command, "--ledger", postgres.new()), f"the ledger of {folder} is postgresql+psycopg"
        )


def test_without_ray(isoflop, project: Job, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delitem(sys.modules, "isoflop.cluster", raising=False)
    monkeypatch.delitem(sys.modules, "isoflop.on_node", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = isoflop("sweep", "--ray", "auto", "--project", project[0])
    refused(answer, "Ray is not installed here")
    assert answer.err.endswith("hint: pip install 'isoflop[ray]'\n")


def test_two_processes_on_one_project(isoflop, tmp_path: Path, sources: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    home = Project(tmp_path / "p")
    with home.lock():
        refused(isoflop("corpus", sources[-1], "--project", tmp_path / "p"), "in use", str(os.getpid()))


def test_an_unknown_id_and_a_foreign_model(isoflop, project: Job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("show", "zzzz", "--project", project[0]), "zzzz")
    refused(isoflop("eval", tmp_path, "--project", project[0]), "config.json")


def test_a_disk_that_fills_up(  # type: ignore[no-untyped-def]
    isoflop, tmp_path: Path, sources: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    home = tmp_path / "p"
    assert isoflop("corpus", sources[-1], "--vocab", 400, "--heldout", 0.2, "--project", home).code == 0
    monkeypatch.setattr("isoflop.families.decoder.save_file", full)
    words = ("train", "--width", 32, "--layers", 2, "--tokens", 40_000, "--project", home)
    refused(isoflop(*words), "full")
    assert not list((home / "artifacts").glob("*")) if (home / "artifacts").exists() else True
    monkeypatch.undo()


def test_tokens_that_are_cut_under_a_run(  # type: ignore[no-untyped-def]
    isoflop, tmp_path: Path, sources: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, save = tmp_path / "p", checkpoint.save
    assert isoflop("corpus", sources[-1], "--vocab", 400, "--heldout", 0.2, "--project", home).code == 0
    (path,) = home.glob("corpora/*/train.bin")

    def cut(*words: Any) -> None:
        save(*words)
        os.truncate(path, 0)

    monkeypatch.setattr("isoflop.devices.cores", lambda: 1)  # so that it trains in this process
    monkeypatch.setitem(train_trunk.__kwdefaults__, "checkpoint_seconds", 0)  # type: ignore[arg-type]
    monkeypatch.setattr(checkpoint, "save", cut)
    words = ("train", "--width", 32, "--layers", 2, "--tokens", 40_000, "--project", home)
    refused(isoflop(*words), f"{path} was cut short while it was being read")


def test_an_unknown_option_is_a_usage_error(isoflop) -> None:  # type: ignore[no-untyped-def]
    answer = isoflop("run", "--bugdet", "5m")
    assert answer.code == 2
    assert "--budget" in answer.err or "bugdet" in answer.err


# -- other architectures --------------------------------------------------------------------------------


def test_a_whole_job_of_another_family(isoflop, tmp_path: Path, sources: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    answer = isoflop(
        "run", sources[0], sources[-1], "--family", "gpt2", "--budget", "8e11flops", "--ladder-share", 0.75,
        "--vocab", 400, "--heldout", 0.1, "--project", tmp_path / "p", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    result = Result.from_json(answer.out)
    assert result.bpb
    assert result.samples
    assert type(AutoModelForCausalLM.from_pretrained(result.model)).__name__ == "GPT2LMHeadModel"
    runs = json.loads(isoflop("ls", "--project", tmp_path / "p", "--json").out)
    assert {r["config"]["model"]["family"] for r in runs} == {"gpt2"}
    assert isoflop("plan", "--budget", "8e11flops", "--project", tmp_path / "p").code == 0
    planned = isoflop("plan", "--cluster", "8xA100", "--days", 1, "--project", tmp_path / "p", "--json")
    assert any("extrapolated" in note for note in json.loads(planned.out)["notes"])
    words = ("train", "--family", "llama", "--project", tmp_path / "p")
    refused(isoflop(*words), "the latest plan is of the family gpt2, not llama")
    words = ("train", "--family", "isoflop", "--project", tmp_path / "p")  # the default, but it was typed
    refused(isoflop(*words), "the latest plan is of the family gpt2, not isoflop")


def test_a_masked_model_has_no_bits_per_byte(isoflop, tmp_path: Path, sources: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    home = ("--project", tmp_path / "p")
    assert isoflop("corpus", sources[0], "--vocab", 400, "--heldout", 0.2, *home).code == 0
    shape = ("--family", "bert", "--objective", "masked-words", "--width", 64, "--tokens", 20_000)
    answer = isoflop("train", *shape, *home, "--json")
    assert answer.code == 0, answer.err
    run = json.loads(answer.out)
    assert (run["bpb"], run["bpb_se"]) == (None, None)
    assert "no bits per byte" in answer.err
    model = tmp_path / "p" / run["model"]
    assert "–" in isoflop("eval", model, *home).out
    assert json.loads(isoflop("eval", model, *home, "--json").out)["bpb"] is None
    assert "–" in isoflop("ls", *home).out
    assert isoflop("report", *home).code == 0
    refused(isoflop("sample", model, *home), "fills gaps")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--family", "gtp2"), "no family 'gtp2'"),
        (("--family", "EMPTY"), "has no config.json"),
        (("--family", "VISION"), "neither a causal nor a masked"),
        (("--family", "llama", "--objective", "masked"), "cannot learn the objective 'masked'"),
        (("--objective", "guessing"), "cannot learn the objective 'guessing'"),
    ],
)
def test_bad_families(isoflop, tmp_path: Path, words: tuple[str, ...], says: str) -> None:  # type: ignore[no-untyped-def]
    folders = {"EMPTY": tmp_path, "VISION": tmp_path / "vision"}
    folders["VISION"].mkdir()
    (folders["VISION"] / "config.json").write_text('{"model_type": "vit"}')
    refused(isoflop("run", *(folders.get(w, w) for w in words), "--project", tmp_path / "p"), says)
    assert not (tmp_path / "p").exists()
