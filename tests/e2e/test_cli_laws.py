"""Laws from the command line: tables, predictions, plans, designs; good input and bad."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from e2e.commands import refused


@pytest.fixture(scope="module")
def runs_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-six runs under names that have to be guessed."""
    rng = np.random.default_rng(0)
    N = np.repeat(np.geomspace(1e7, 1e9, 6), 6)
    D = N * np.tile(np.geomspace(5, 80, 6), 6)
    loss = (1.8 + 480.0 / N**0.35 + 2100.0 / D**0.37) * np.exp(0.003 * rng.standard_normal(36))
    path = tmp_path_factory.mktemp("tables") / "runs.csv"
    rows = [f"run{i},{n / 1e6},{d},{v}" for i, (n, d, v) in enumerate(zip(N, D, loss, strict=True))]
    path.write_text("\n".join(["Name,Model Size (M),tokens_seen,val_loss", *rows]))
    return path


def test_a_table_becomes_a_law_a_prediction_and_a_plan(isoflop, runs_csv: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    saved = tmp_path / "law.json"
    answer = isoflop(
        "fit", runs_csv, "--estimator", "huber-sum", "--bootstrap", 200, "--out", saved, "--json"
    )
    assert answer.code == 0, answer.err
    law = json.loads(answer.out)
    wanted = {
        "law",
        "n",
        "params",
        "se",
        "objective",
        "starts",
        "starts_at_optimum",
        "holdout",
        "diagnostics",
    }
    assert wanted <= law.keys()
    assert (law["law"], law["n"]) == ("chinchilla", 36)
    assert any("'Model Size (M)', in M" in sentence for sentence in law["diagnostics"])
    answer = isoflop("predict", saved, "--params", "2e9", "--tokens", "4e10", "--interval", 0.9, "--json")
    found = json.loads(answer.out)
    truth = 1.8 + 480.0 / 2e9**0.35 + 2100.0 / 4e10**0.37
    assert found["low"] < truth < found["high"]
    assert found["extrapolation"] == pytest.approx(2e9 * 4e10 / (1e9 * 8e10))
    plan = json.loads(isoflop("plan", saved, "--flops", "1e21", "--json").out)
    for key in ("params", "tokens", "loss"):
        assert plan[key]["low"] <= plan[key]["value"] <= plan[key]["high"]
    assert 6 * plan["params"]["value"] * plan["tokens"]["value"] == pytest.approx(1e21)


def test_a_fit_shows_profiles_and_writes_its_draws(isoflop, runs_csv: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("fit", runs_csv, "--bootstrap", 50, "--resample", "wild", "--profile")
    answer = isoflop(*words, "--draws", tmp_path / "draws.csv")
    assert answer.code == 0, answer.err
    assert "bootstrap wild by cluster: 50 draws kept" in answer.out
    assert "Profile likelihood, 90%" in answer.out
    header, *rows = (tmp_path / "draws.csv").read_text().splitlines()
    assert header == '"E","A","B","alpha","beta"'
    assert len(rows) == 50
    law = json.loads(isoflop(*words, "--json").out)
    assert law["profile"].keys() == law["params"].keys()
    for name, part in law["profile"].items():
        assert part["interval"]["low"] < law["params"][name] < part["interval"]["high"]


def test_laws_print_words_and_tables(isoflop, runs_csv: Path) -> None:  # type: ignore[no-untyped-def]
    assert "Hoffmann et al. 2203.15556" in isoflop("laws").out
    listed = json.loads(isoflop("laws", "--json").out)
    assert {"chinchilla", "kaplan", "coupled", "repeated-data", "broken-1"} <= {law["law"] for law in listed}
    answer = isoflop("fit", runs_csv, "--bootstrap", 50, "--law", "auto")
    assert "Which law" in answer.out
    assert "ordered hold-out" in answer.out
    assert "alpha" in answer.out
    plan = isoflop("plan", "besiroglu-2024", "--flops", "5.76e23", "--unique-tokens", "1e12")
    assert "Twice the unique data would be worth" in plan.out
    assert (
        "interval of a new run"
        in isoflop("predict", "besiroglu-2024", "--params", "7e9", "--tokens", "1e12").out
    )
    repeated = isoflop("predict", "muennighoff-2023", "--params", "6.34e9", "--tokens", "242e9", "--with",
                       "unique_tokens=25e9", "--json")  # fmt: skip
    assert json.loads(repeated.out)["loss"] == pytest.approx(2.2256440889984477)


def test_a_plan_under_the_limits_of_serving(isoflop) -> None:  # type: ignore[no-untyped-def]
    words = ("plan", "besiroglu-2024", "--flops", "1e23", "--max-memory", "8GiB", "--serving-bits", "4",
             "--max-latency", "20ms", "--bandwidth", "100GB/s", "--max-params", "20B")  # fmt: skip
    answer = isoflop(*words)
    assert answer.code == 0, answer.err
    for says in (
        "weights, GB at 4 bits", "ms a generated token, at least", "The memory does not bind.",
        "The cap on parameters does not bind.", "Twice the latency allowed would be worth", "; it binds.",
        "kumar-2024-post knows", "lower bound",
    ):  # fmt: skip
        assert says in answer.out
    plan = json.loads(isoflop(*words, "--json").out)
    assert plan["binding"] == "max_latency"
    assert plan["max_memory"] == 8 * 2**30
    assert plan["params"]["value"] == pytest.approx(4e9)
    assert plan["token_seconds"] == pytest.approx(0.02)
    bits = isoflop("plan", "kumar-2024-post", "--flops", "1e21", "--serving-bits", "4")
    assert "Twice the bits at serving would be worth" in bits.out
    assert "does not know" not in bits.out


def test_a_plan_with_a_teacher(isoflop) -> None:  # type: ignore[no-untyped-def]
    words = ("plan", "busbridge-2025", "--flops", "1e21", "--teacher-loss", "2.1")
    assert "Distilling is worth 0.22 doublings: training without a teacher reaches" in isoflop(*words).out
    paid = isoflop(*words, "--teacher-params", "7B", "--max-params", "1B")
    assert "Distilling is worth less than nothing" in paid.out
    assert "Train longer instead" in paid.out
    found = json.loads(isoflop(*words, "--teacher-params", "7B", "--json").out)
    assert found["distilling"]["doublings"]["value"] < 0
    assert found["teacher_params"] == 7e9


def test_counts_as_people_write_them(isoflop, runs_csv: Path) -> None:  # type: ignore[no-untyped-def]
    def same(*pairs: tuple[object, ...]) -> None:
        one, other = (isoflop(*words, "--json") for words in pairs)
        assert one.code == other.code == 0, one.err + other.err
        assert one.out == other.out

    same(("predict", "besiroglu-2024", "--params", "7B", "--tokens", "1.4T"),
         ("predict", "besiroglu-2024", "--params", "7_000_000_000", "--tokens", "1.4e12"))  # fmt: skip
    repeated = ("predict", "muennighoff-2023", "--params", "6.34B", "--tokens", "242B", "--with")
    same((*repeated, "unique_tokens=25B"), (*repeated, "unique_tokens=25e9"))
    limits = ("--unique-tokens", "{}", "--inference-tokens", "{}")
    many, plain = ([word.format(n) for word in limits] for n in ("20B", "2e10"))
    same(("plan", "besiroglu-2024", "--flops", "1000000000T", *many),
         ("plan", "besiroglu-2024", "--flops", "1e21", *plain))  # fmt: skip
    same(("next", runs_csv, "--flops", "100000000T"), ("next", runs_csv, "--flops", "1e20"))
    same(("gain", "besiroglu-2024", "hoffmann-2022", "--flops", "1e21", "--flops", "10000000000T"),
         ("gain", "besiroglu-2024", "hoffmann-2022", "--flops", "1e21", "--flops", "1e22"))  # fmt: skip


def test_predictions_say_what_they_are_of_and_how_far_out(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    size = ("--params", "1B", "--tokens", "100B")
    assert isoflop("predict", "step-law-lr", *size).out.startswith("learning rate 0.0016")
    assert isoflop("predict", "step-law-batch", *size).out.startswith("batch, tokens 1.1")
    assert isoflop("predict", "besiroglu-2024", *size).out.startswith("loss 2.")
    found = json.loads(isoflop("predict", "step-law-lr", *size, "--json").out)
    assert found.keys() == {"target", "loss", "low", "high", "level", "extrapolation"}
    assert found["target"] == "learning rate"
    hours = np.geomspace(1, 1000, 12)
    (tmp_path / "hours.csv").write_text("\n".join(["hours,loss", *(f"{h},{1 + h**-0.3}" for h in hours)]))
    words = ("fit", tmp_path / "hours.csv", "--map", "x=hours", "--law", "power", "--bootstrap", "0")
    assert "x the fitted x" in isoflop(*words, "--out", tmp_path / "law.json").out
    answer = isoflop("predict", tmp_path / "law.json", "--with", "x=10k")
    assert "10 times beyond the fitted range of x" in answer.out
    assert "compute" not in answer.out


def test_frontier_without_a_law(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    N = np.tile(np.geomspace(1e7, 1e9, 7), 3)
    C = np.repeat([6e17, 6e18, 6e19], 7)
    loss = 1.8 + 480.0 / N**0.35 + 2100.0 / (C / 6 / N) ** 0.37
    lines = ["params,flops,loss", *(f"{n},{c},{v}" for n, c, v in zip(N, C, loss, strict=True))]
    (tmp_path / "isoflops.csv").write_text("\n".join(lines))
    assert "N* = " in isoflop("frontier", tmp_path / "isoflops.csv").out
    found = json.loads(isoflop("frontier", tmp_path / "isoflops.csv", "--json").out)
    assert found["exponent"]["value"] == pytest.approx(0.37 / 0.72, abs=0.02)


def test_next_gain_and_plot(isoflop, runs_csv: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    answer = isoflop("next", runs_csv, "--flops", "1e21")
    assert answer.code == 0, answer.err
    assert "Next: " in answer.out
    assert json.loads(isoflop("next", runs_csv, "--flops", "1e21", "--json").out)["runs"]
    worth = json.loads(isoflop("gain", runs_csv, runs_csv, "--json").out)
    assert worth["scales"][0]["doublings"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert "doublings" in isoflop("gain", runs_csv, runs_csv).out
    answer = isoflop("plot", runs_csv, "--out", tmp_path / "pictures", "--dark")
    assert len(answer.out.split()) == len(list((tmp_path / "pictures").iterdir())) == 10


def test_columns_are_mapped_in_one_breath(isoflop, runs_csv: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("--map", "params=Model Size (M):M", "tokens=tokens_seen", "loss=val_loss")
    for order in ((runs_csv, *words), (*words, runs_csv)):
        answer = isoflop("fit", *order, "--bootstrap", 0, "--json")
        assert answer.code == 0, answer.err
        assert json.loads(answer.out)["params"]["E"] == pytest.approx(1.8, abs=0.3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fit", "TABLE", "--map", "loss=valloss"), "no column 'valloss'"),
        (("fit", "TABLE", "--map", "loss"), "not ROLE=COLUMN"),
        (("fit", "TABLE", "--law", "chinchila"), "no law named 'chinchila'"),
        (("fit", "TABLE", "--estimator", "mean"), "no estimator named 'mean'"),
        (("fit", "TABLE", "--resample", "wylde"), "no way to resample named 'wylde'"),
        (("fit", "TABLE", "--draws", "draws.rds"), "cannot be written as 'draws.rds'"),
        (("fit", "TABLE", "--draws", "draws.csv", "--bootstrap", "0"), "has no draws"),
        (("fit", "TABLE", "--fix", "alpha=half"), "cannot be fixed at 'half'"),
        (("fit", "TABLE", "TABLE"), "second table"),
        (("fit", "none.csv"), "none.csv does not exist"),
        (("fit", "--map", "loss=val_loss"), "for a table, and none was given"),
        (("predict", "TABLE", "--params", "1e9", "--tokens", "1e9"), "not a saved fit"),
        (("predict", "besiroglu-2024", "--params", "1e9"), "no column 'tokens'"),
        (("predict", "besiroglu-2024", "--params", "-1", "--tokens", "1e9"), "positive params"),
        (
            ("predict", "nobody-2031", "--params", "1e9", "--tokens", "1e9"),
            "neither a file nor a published law",
        ),
        (("next", "TABLE", "--flops", "-1"), "makes no sense"),
        (("next", "besiroglu-2024", "--flops", "1e20"), "no runs to add to"),
        (("gain", "TABLE", "besiroglu-2023"), "neither a file nor a published law"),
        (("plot", "TABLE", "--format", "gif"), "cannot be 'gif'"),
        (("plot", "besiroglu-2024"), "need runs"),
        (("frontier", "TABLE"), "compute budgets have 4 sizes"),
        (("frontier", "TABLE", "--approach", "three"), "no approach 'three'"),
        (("plan", "besiroglu-2024"), "needs a compute budget"),
        (("plan", "besiroglu-2024", "--flops", "1"), "less than one parameter"),
        (("plan", "besiroglu-2024", "--flops", "1e300"), "flops is 1e+300"),
        (("fit", "TABLE", "--fix", "alpha=-1"), "cannot hold alpha = -1"),
        (("fit", "TABLE", "--fix", "alpha=nan"), "cannot hold alpha = nan"),
        (("fit", "TABLE", "--bootstrap", "0", "--out", "/"), "is a folder"),
        (("predict", "besiroglu-2024", "--params", "1e300", "--tokens", "1e9"), "params = 1e+300"),
        (("predict", "besiroglu-2024", "--params", "1e9", "--tokens", "1e9", "--with", "foo=1"), "'foo'"),
        (("predict", "besiroglu-2024", "--params", "1e9", "--tokens", "1e9", "--with", "params=1"), "own"),
        (("next", "TABLE", "--flops", "1e21", "--share", "0"), "a share of 0"),
        (("next", "TABLE", "--flops", "1e21", "--interval", "7"), "An interval of 7"),
        (("frontier", "TABLE", "--interval", "2"), "An interval of 2"),
        (("plan", "besiroglu-2024", "--flops", "-3"), "flops is -3"),
        (("plan", "besiroglu-2024", "--flops", "1e20", "--with", "a=b"), "not a number"),
        (("plan", "besiroglu-2024", "--flops", "1e20", "--with", "a=3"), "no covariate 'a'"),
        (("plan", "besiroglu-2024", "--flops", "much"), "--flops is 'much', not a number"),
        (("plan", "besiroglu-2024", "--flops", "nan"), "--flops is 'nan', not a number"),
        (("plan", "besiroglu-2024", "--flops", "1e20", "--max-params", "7X"), "--max-params is '7X'"),
        (
            ("plan", "besiroglu-2024", "--flops", "1e20", "--max-memory", "8Gb"),
            "'8Gb', not a number of bytes",
        ),
        (("plan", "besiroglu-2024", "--flops", "1e20", "--max-latency", "fast"), "--max-latency is 'fast'"),
        (("plan", "besiroglu-2024", "--flops", "1e20", "--bandwidth", "9GB"), "bytes a second"),
        (("plan", "besiroglu-2024", "--flops", "1e20", "--serving-bits", "few"), "--serving-bits is 'few'"),
        (("plan", "besiroglu-2024", "--flops", "1e20", "--max-latency", "20ms"), "needs the bandwidth"),
        (("plan", "besiroglu-2024", "--flops", "1e20", "--teacher-loss", "2"), "what a teacher is worth"),
        (("plan", "besiroglu-2024", "--flops", "1e20", "--serving-bits", "0"), "serving_bits is 0"),
        (("plan", "busbridge-2025", "--flops", "1e20"), "needs its loss"),
        (("plan", "--max-memory", "8GB"), "--max-memory is for a plan by a law alone"),
        (("plan", "--interval", "0.9"), "--interval is for a plan by a law alone"),
        (("plan", "--with", "a=1"), "--with is for a plan by a law alone"),
        (
            ("plan", "besiroglu-2024", "--flops", "1e20", "-b", "5m"),
            "--budget is for a plan by the project's",
        ),
        (
            ("plan", "besiroglu-2024", "--flops", "1e20", "--seed", "0"),
            "--seed is for a plan by the project's",
        ),
        (
            ("plan", "besiroglu-2024", "--flops", "1e20", "-p", "x"),
            "--project is for a plan by the project's",
        ),
        (("plan", "step-law-lr", "--flops", "1e20"), "nothing to split"),
        (("predict", "besiroglu-2024", "--params", "inf", "--tokens", "1e9"), "--params is 'inf'"),
        (("predict", "besiroglu-2024", "--params", "7B", "--tokens", "lots"), "--tokens is 'lots'"),
        (("next", "TABLE", "--flops", "1e1000"), "--flops is '1e1000'"),
        (("gain", "TABLE", "TABLE", "--flops", "1e20", "--flops", "x"), "--flops is 'x'"),
    ],
)
def test_bad_tables_and_laws(isoflop, runs_csv: Path, words: tuple[str, ...], says: str) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop(*(runs_csv if word == "TABLE" else word for word in words)), says)
