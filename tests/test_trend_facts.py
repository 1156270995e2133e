"""The check of the package's tables against others: which rows match, and which figures disagree."""

from __future__ import annotations

from pathlib import Path

from test_tables import shared, written
from trend_facts import disagreements, matches, plain

from isoflop.trend.tables import read_table

OURS = (
    "name,organisation,date,params_total,params_active,tokens,epochs,flops,domain\n"
    "GPT-3 175B,OpenAI,2020-05-28,175e9,,300e9,,3.14e23,language\n"
    "InternLM-20B,X,2023-09-20,20e9,,2.3e12,,,language\n"
    "Mix-A3B,X,2024-01-01,30e9,3e9,,,,language\n"
    "Only ours,X,2024-01-01,30e9,,,,,language\n"
)
THEIRS = (
    "Model,Organization,Publication date,Domain,Parameters,Training compute (FLOP),"
    "Training dataset size (total),Epochs\n"
    "GPT-3,OpenAI,2020-08-28,Language,175e9,3.1e23,150e9,\n"
    "InternLM,X,2023-07-06,Language,104e9,1e24,,\n"
    "Mix (A3B),X,2024-01-01,Language,34e9,,,\n"
)


def test_names_match_without_case_punctuation_and_makers() -> None:
    assert plain("NVIDIA H100 SXM5") == plain("h100-sxm5")
    assert plain("PanGu-α") == plain("PanGu-Alpha")
    assert plain("Llama 2-70B") != plain("Llama 3-70B")


def test_figures_beyond_the_tolerance_are_listed(tmp_path: Path) -> None:
    ours, theirs = (
        read_table(written(tmp_path, OURS, "o.csv")),
        read_table(written(tmp_path, THEIRS, "t.csv")),
    )
    assert matches(ours, theirs) == [(0, 0), (2, 2)]  # InternLM is of another size
    found = {(d.name, d.column): (d.ours, d.theirs) for d in disagreements(ours, theirs)}
    assert found == {
        ("GPT-3 175B", "tokens"): ("3e+11", "1.5e+11"),
        ("GPT-3 175B", "date"): ("2020-05-28", "2020-08-28"),
        ("Mix-A3B", "params_total"): ("3e+10", "3.4e+10"),
    }


def test_most_of_the_packages_models_are_known_elsewhere_and_agree() -> None:
    """Those that disagree count ensembles, unique text or later versions: docs/facts.md lists them."""
    ours, theirs = read_table(), read_table(shared("notable_models.csv"), every_row=True)
    found = disagreements(ours, theirs)
    assert len(matches(ours, theirs)) >= 170
    assert len({d.name for d in found}) <= 32
    assert sum(d.column == "params_total" for d in found) <= 3
