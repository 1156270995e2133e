"""Tables from files: what is guessed, what is said, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.laws.choose import compare, fit_table
from isoflop.laws.observations import Observations
from isoflop.laws.saved import load, save
from isoflop.laws.table import parse_mapping, read_table

N = np.repeat([1e7, 3e7, 1e8, 3e8], 4)
D = np.tile([1e9, 3e9, 1e10, 3e10], 4)
LOSS = 1.8 + 480.0 / N**0.35 + 2100.0 / D**0.37


def written(folder: Path, header: str, *columns: Any, name: str = "runs.csv") -> Path:
    path = folder / name
    rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_names_are_guessed_and_said(tmp_path: Path) -> None:
    path = written(tmp_path, "Name,Model Size,train/tokens,eval/val_loss", "abcdefghijklmnop", N, D, LOSS)
    columns, notes = read_table(path)
    assert columns["params"] == pytest.approx(N)
    assert columns["tokens"] == pytest.approx(D)
    assert columns["loss"] == pytest.approx(LOSS)
    assert "params is column 'Model Size'." in notes
    assert "loss is column 'eval/val_loss'." in notes


def test_units_of_names_cells_and_mappings(tmp_path: Path) -> None:
    path = written(
        tmp_path, "params (M),D_tokens,size,ppl", N / 1e6, [f"{d / 1e9:g}B" for d in D], N / 1e9, np.exp(LOSS)
    )
    columns, notes = read_table(path)
    assert columns["params"] == pytest.approx(N)
    assert columns["tokens"] == pytest.approx(D)
    assert columns["loss"] == pytest.approx(LOSS)
    assert "The loss is the logarithm of the perplexity 'ppl'." in notes
    assert read_table(path, {"params": "size:B"})[0]["params"] == pytest.approx(N)


def test_exports_of_trackers(tmp_path: Path) -> None:
    states = ["finished"] * 14 + ["crashed", "failed"]
    header = "Name,State,config.params_m,config.tokens_b,summary.val_loss"
    path = written(tmp_path, header, range(16), states, N / 1e6, D / 1e9, LOSS)
    columns, notes = read_table(path)
    assert columns["params"] == pytest.approx(N)
    assert columns["tokens"] == pytest.approx(D)
    assert "2 rows have a State other than finished; to leave them out: --where State=finished." in notes
    assert len(read_table(path, where={"State": "finished"})[0]["loss"]) == 14


def test_parquet_jsonl_and_rows_by_value(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table: dict[str, Any] = {"params": N, "tokens": D, "loss": LOSS, "corpus": ["web", "code"] * 8}
    parquet.write_table(pa.table(table), tmp_path / "runs.parquet")
    lines = [json.dumps({k: v[i] for k, v in table.items()}) for i in range(16)]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines))
    for name in ("runs.parquet", "runs.jsonl"):
        columns, notes = read_table(tmp_path / name, where={"corpus": "Code"})
        assert columns["loss"] == pytest.approx(LOSS[1::2])
        assert "8 of 16 rows have corpus = Code." in notes


def test_tokens_may_follow_from_flops(tmp_path: Path) -> None:
    path = written(tmp_path, "params,Training FLOP,loss", N, 6 * N * D, LOSS)
    found, _ = fit_table(str(path), bootstrap=0)
    assert found.observations.tokens == pytest.approx(D)
    assert "tokens were derived as flops / (6 params)." in found.diagnostics


@pytest.mark.parametrize(
    ("header", "mapping", "message", "hint"),
    [
        ("params,tokens,result", {}, "no column that looks like a loss", "--map loss="),
        ("params,tokens,loss", {"loss": "val_los"}, "no column 'val_los'", "'loss'"),
        ("params,tokens,loss", {"parms": "loss"}, "no role 'parms'", "params"),
        ("params,tokens,loss", {"params": "params:X"}, "unknown unit", "K, M, B"),
    ],
)
def test_columns_that_are_not_there(
    tmp_path: Path, header: str, mapping: dict[str, str], message: str, hint: str
) -> None:
    path = written(tmp_path, header, N, D, LOSS)
    with pytest.raises(FitError, match=message) as caught:
        read_table(path, mapping)
    assert hint in caught.value.hint


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="does not exist"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "runs.xyz").write_text("a")
    with pytest.raises(FitError, match="not a table"):
        read_table(tmp_path / "runs.xyz")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(FitError, match=r"ragged.csv cannot be read"):
        read_table(tmp_path / "ragged.csv")
    (tmp_path / "empty.csv").write_text("params,tokens,loss\n")
    with pytest.raises(FitError, match="no rows"):
        read_table(tmp_path / "empty.csv")
    path = written(tmp_path, "params,params,tokens,loss", N, N, D, LOSS)
    with pytest.raises(FitError, match="two columns named 'params'"):
        read_table(path)
    path = written(tmp_path, "params,tokens,loss", ["big", *N[1:]], D, LOSS)
    with pytest.raises(FitError, match=r"Row 0 .* 'params' is 'big'"):
        read_table(path)


def test_a_perplexity_is_asked_about(tmp_path: Path) -> None:
    path = written(tmp_path, "params,tokens,loss", N, D, np.exp(LOSS) * 3)
    with pytest.raises(FitError, match="more than any loss") as caught:
        read_table(path)
    assert "loss:ppl" in caught.value.hint
    assert read_table(path, {"loss": "loss:ppl"})[0]["loss"] == pytest.approx(LOSS + np.log(3))
    assert read_table(path, {"loss": "loss:nats"})[0]["loss"] == pytest.approx(np.exp(LOSS) * 3)


def test_repeated_rows_are_said(tmp_path: Path) -> None:
    table = {k: np.append(v, v[:1]) for k, v in {"params": N, "tokens": D, "loss": LOSS}.items()}
    path = written(tmp_path, "params,tokens,loss", *table.values())
    found, _ = fit_table(str(path), bootstrap=0)
    assert any("16 (as 0)" in sentence for sentence in found.diagnostics)


def test_mapping_words() -> None:
    assert parse_mapping(["loss=val loss", "params = n"]) == {"loss": "val loss", "params": "n"}
    with pytest.raises(FitError, match="not ROLE=COLUMN"):
        parse_mapping(["loss"])


def test_saved_fits_come_back_and_nothing_else_does(tmp_path: Path) -> None:
    found, _ = fit_table(str(written(tmp_path, "params,tokens,loss", N, D, LOSS)), bootstrap=20)
    save(found, tmp_path / "law.json")
    assert load(str(tmp_path / "law.json")) == found
    assert load("besiroglu-2024").law == "chinchilla"
    (tmp_path / "bad.json").write_text('{"law": 3}')
    with pytest.raises(ValueError, match="not a saved fit"):
        load(str(tmp_path / "bad.json"))
    with pytest.raises(FitError, match="neither a file nor a published law") as caught:
        load("besiroglu")
    assert "besiroglu-2024" in caught.value.hint


def test_laws_are_compared_on_the_same_runs() -> None:
    rng = np.random.default_rng(0)
    many_n, many_d = np.repeat(np.geomspace(1e7, 1e10, 8), 8), np.tile(np.geomspace(1e9, 1e12, 8), 8)
    coupled = 1.2 + (3355.0 / many_n**0.408 + 18186.0 / many_d**0.431) ** 0.452
    table = {"params": many_n, "tokens": many_d, "loss": coupled * np.exp(0.001 * rng.standard_normal(64))}
    found = compare(table, ("chinchilla", "coupled", "kaplan"), estimator="least-squares")
    assert found.chosen == "coupled"
    assert len(found.table()) == 3
    table["loss"] = 3.0 * np.exp(0.05 * rng.standard_normal(64))
    undecided = compare(table, ("chinchilla", "multiplicative"), estimator="least-squares")
    assert undecided.chosen is None
    assert undecided.verdict.startswith("Undecided")


def test_tables_that_cannot_answer_say_so() -> None:
    from isoflop.laws import fit

    together = fit({"params": N, "tokens": 20 * N, "loss": 1.8 + 480.0 / N**0.35}, bootstrap=20)
    assert any("N and D cannot be told apart" in sentence for sentence in together.diagnostics)
    rising = fit({"params": N, "tokens": D, "loss": 1 / LOSS}, bootstrap=0)
    assert any("needs --ceiling" in sentence for sentence in rising.diagnostics)
    more = {"params": N, "tokens": D, "unique_tokens": 3 * D, "loss": LOSS}
    once = fit(more, law="repeated-data", bootstrap=0)
    assert any("No run repeats data" in sentence for sentence in once.diagnostics)
    assert once.observations.columns["unique_tokens"] == once.observations.tokens


def test_undecided_says_what_is_fitted(tmp_path: Path) -> None:
    hours = np.geomspace(1, 1000, 12)
    path = written(tmp_path, "hours,loss", hours, 2 + 1.5 * hours**-0.5)
    found, comparison = fit_table(str(path), law="auto", mapping=["x=hours"], bootstrap=0)
    assert comparison is not None
    assert "broken-2" not in {c.law for c in comparison.candidates}
    assert found.law in ("power-floor", "saturating", "bounded", "shifted")
    assert f"Fitted: {found.law}." in comparison.verdict


def test_standard_errors_of_evaluations_weigh_the_runs() -> None:
    from isoflop.laws import fit

    rng = np.random.default_rng(3)
    se = np.where(np.arange(16) % 4 == 0, 0.2, 0.002)
    table = {"params": N, "tokens": D, "loss": LOSS + se * rng.standard_normal(16)}
    plain = fit(table, estimator="least-squares", bootstrap=0)
    weighted = fit({**table, "loss_se": se}, estimator="least-squares", bootstrap=0)
    truth = 1.8 + 480.0 / 1e9**0.35 + 2100.0 / 1e11**0.37
    assert abs(weighted.loss(1e9, 1e11)[0] / truth - 1) < abs(plain.loss(1e9, 1e11)[0] / truth - 1)
    assert weighted.evaluation_sd > 0.01
    assert weighted.noise_sd < plain.noise_sd


def test_observations_know_what_they_lack() -> None:
    with pytest.raises(FitError, match="no column 'teacher_loss'"):
        Observations.of({"params": N, "tokens": D, "loss": LOSS}, ("params", "tokens", "teacher_loss"))
    seen = Observations.of({"params": N, "tokens": D, "loss": LOSS}, ("params", "tokens", "unique_tokens"))
    assert seen.columns["unique_tokens"] == seen.tokens
    assert "one epoch" in " ".join(seen.notes)
