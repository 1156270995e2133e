"""Every law against the numbers its paper gives, its own derivatives, and data made from it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.laws import LAWS, PUBLISHED, Fit, fit
from isoflop.laws.precision import best_bits
from isoflop.laws.repeated import effective_tokens
from isoflop.laws.solve import Array, Problem

SHARED = Path(__file__).parents[2] / "shared/data/scaling"
REPEATED = {"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974), "alpha": 0.3526596,
            "beta": 0.3526596}  # fmt: skip

# Values computed from the printed constants, apart from this code; the repeated-data ones are the authors'.
VECTORS = [
    ("hoffmann-2022", {"params": 70e9, "tokens": 1.4e12}, 1.9208460265656064),
    ("hoffmann-2022-rounded", {"params": 280e9, "tokens": 300e9}, 1.9932584616598494),
    ("besiroglu-2024", {"params": 70e9, "tokens": 1.4e12}, 1.9738818631585637),
    ("kaplan-2020", {"params": 1e8, "tokens": 1e9}, 2.956733738633301),
    ("kaplan-2020", {"params": 1.5e9, "tokens": 22e9}, 2.3125484833714913),
    ("kaplan-2020-params", {"x": 1e9}, 2.3756402951345246),
    ("kaplan-2020-tokens", {"x": 1e10}, 2.2624417538197132),
    ("kaplan-2020-compute", {"x": 8.64e19}, 2.6580802262455236),
    ("muennighoff-2023", {"params": 6.34e9, "tokens": 242e9, "unique_tokens": 25e9}, 2.2256440889984477),
    ("muennighoff-2023", {"params": 8.67e9, "tokens": 178e9, "unique_tokens": 25e9}, 2.2269634075087867),
    ("muennighoff-2023", {"params": 1e10, "tokens": 1e9, "unique_tokens": 1e8}, 4.128967670387711),
    ("gadre-2024-c4", {"params": (1e21 / 120) ** 0.5, "tokens": (1e21 * 20 / 6) ** 0.5}, 2.473444185420609),
    ("gadre-2024-redpajama", {"params": (1e21 / 1920) ** 0.5, "tokens": (1e21 * 320 / 6) ** 0.5},
     2.720524006047471),
    ("gadre-2024-error-c4", {"task_loss": 2.473444185420609}, 0.529398355849361),
    ("kumar-2024", {"params": 220e6, "tokens": 26e9, "bits_weights": 8, "bits_activations": 8, "bits_kv": 8},
     3.2271084994668633),
    ("kumar-2024-post", {"params": 220e6, "tokens": 26e9, "bits_post": 3},
     3.1966050752957167 + 0.09558513879103081),
    ("busbridge-2025-supervised", {"params": 3e9, "tokens": 60e9}, 2.1577977607109977),
    ("busbridge-2025", {"params": 5e8, "tokens": 1e10, "teacher_loss": 2.1577977607109977},
     2.418033779411571),
    ("frantar-2023-t5", {"params": 85e6, "tokens": 65536e6, "sparsity": 0.5}, 1.6774437494798125),
    ("step-law-lr", {"params": 1e9, "tokens": 1e11}, 1.632499402447079e-3),
    ("step-law-batch", {"params": 1e9, "tokens": 1e11}, 1107714.89),
    ("porian-2024-lr", {"params": 1e9, "tokens": 1e11}, 2.2382e-3),
    ("deepseek-2024-lr", {"x": 1e20}, 9.859982e-4),
    ("deepseek-2024-batch", {"x": 1e20}, 1.017145e6),
]  # fmt: skip


@pytest.mark.parametrize(("name", "at", "value"), VECTORS)
def test_published_constants_give_the_published_values(name: str, at: dict[str, float], value: float) -> None:
    digits = 1e-4 if value in (2.2382e-3, 9.859982e-4, 1.017145e6) else 1e-8
    assert Fit.of_published(name).loss(**at)[0] == pytest.approx(value, rel=digits)


def test_every_published_law_is_tested() -> None:
    assert PUBLISHED.keys() - {name for name, _, _ in VECTORS} <= {
        "gadre-2024-refinedweb", "gadre-2024-error-redpajama", "gadre-2024-error-refinedweb",
        "frantar-2023-vit", "zhai-2021-finetune", "zhai-2021-10-shot", "porian-2024-batch",
        "llama3-2024-tokens",
    }  # fmt: skip


def test_the_docs_list_every_law_and_every_published_name() -> None:
    page = (Path(__file__).parents[1] / "docs/laws.md").read_text()
    assert {name for name in (*LAWS, *PUBLISHED) if f"`{name}`" not in page} == set()


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("hoffmann-2022-rounded", 92.65), ("hoffmann-2022", 58.93), ("besiroglu-2024", 18.39)],
)
def test_tokens_a_parameter_at_the_gopher_budget(name: str, ratio: float) -> None:
    best = Fit.of_published(name).optimum(5.76e23)
    assert best.tokens.value / best.params.value == pytest.approx(ratio, rel=1e-3)


def test_broken_power_law_and_bounded_law_by_hand() -> None:
    theta = np.array([[0.1, 5.0, 0.2, 1e4, 0.5, 0.3]])
    values = LAWS["broken-1"].loss(theta, {"x": np.array([1e3, 1e6])})[0]
    assert values == pytest.approx([1.3558557955048771, 0.1315478662044925], rel=1e-10)
    bounded = LAWS["bounded"]
    for alpha, x, value in ((0.5, 1e4, 0.19), (0.5, 1e2, 0.6723805294763607), (1.0, 1e4, 2 / 11)):
        found = bounded.loss(np.array([[0.1, 1.0, 10.0, alpha, 0.5]]), {"x": np.array([x])})[0, 0]
        assert found == pytest.approx(value, rel=1e-9)


def test_best_bits_and_effective_tokens() -> None:
    assert best_bits(1.0) == pytest.approx(1.904, abs=1e-3)
    assert effective_tokens(np.array([4e9, 16e9, 0.5e9]), 1e9) == pytest.approx(
        [3.73e9, 10.58e9, 0.5e9], rel=2e-3
    )


# --- derivatives and data of its own ----------------------------------------------------------------

COLUMNS = {
    "params": np.geomspace(1e7, 3e9, 36)[np.random.default_rng(1).permutation(36)],
    "tokens": np.geomspace(3e8, 3e11, 36),
    "unique_tokens": np.geomspace(3e8, 3e11, 36) / np.random.default_rng(0).uniform(1.0, 12.0, 36),
    "bits_weights": np.tile([3.0, 4.0, 6.0, 8.0, 16.0, 12.0], 6),
    "bits_activations": np.tile([4.0, 6.0, 8.0, 16.0], 9),
    "bits_kv": np.tile([4.0, 8.0, 16.0], 12),
    "bits_post": np.tile([2.0, 3.0, 4.0, 6.0], 9),
    "teacher_loss": np.tile([2.0, 2.2, 2.5], 12),
    "sparsity": np.tile([0.0, 0.5, 0.75, 0.875], 9),
    "x": np.geomspace(1e2, 1e8, 36),
    "task_loss": np.linspace(1.5, 4.0, 36),
}
TRUTHS = {
    "coupled": (1.2, 3355.0, 18186.0, 0.41, 0.43, 0.45),
    "kaplan": (6.4e13, 1.8e13, 0.076, 0.103),
    "multiplicative": (1.0, 60.0, 0.1, 0.08),
    "shifted-additive": (1.7, 406.0, 2000.0, 0.34, 0.37, 3e7, 2e9),
    "bounded-additive": (1.7, 11.0, 60.0, 100.0, 0.34, 0.3),
    "over-training": (1.5, 141.0, 190.0, 0.121),
    "repeated-data": (1.87, 521.0, 1488.0, 0.3527, 0.36, 15.4, 5.3),
    "precision": (2.0, 4299.0, 18060.0, 0.4965, 0.48, 2.67, 0.3037, 2.21, 1.4072, 0.96, 2.4185),
    "post-training-quantization": (2.7, 4299.0, 18060.0, 0.4965, 0.48, 0.06, 0.5, 0.34, 0.6),
    "sparsity": (0.65, 16.8, 45.0, 6.9e8, 0.722, 0.245, 0.203),
    "power": (12.0, 0.12),
    "power-floor": (1.4, 9.0, 0.25),
    "shifted": (4.0, 1e-5, 0.3),
    "saturating": (0.2, 5.0, 2000.0, 0.3),
    "bounded": (0.1, 1.0, 10.0, 0.5, 0.4),
    "broken-1": (0.1, 5.0, 0.2, 1e4, 0.5, 0.3),
    "downstream-exponential": (0.85, 2.08, 0.756),
    "downstream-sigmoid": (-0.7, 1.0, 4.8, 2.4),
    "hyperparameter": (1.79, -0.713, 0.307),
    "hyperparameter-compute": (0.3, -0.125),
}


def columns_of(name: str) -> dict[str, Array]:
    return {column: COLUMNS[column] for column in LAWS[name].columns}


@pytest.mark.parametrize(
    "name", [n for n in LAWS if n not in ("chinchilla", "distillation", "broken-2", "broken-3")]
)
def test_noiseless_data_give_their_law_back(name: str) -> None:
    """The law fits its own data exactly, and predicts as the truth does inside them."""
    law, truth = LAWS[name], np.array([TRUTHS[name]])
    table = {**columns_of(name), "loss": law.loss(truth, columns_of(name))[0]}
    found = fit(table, law=name, estimator="least-squares", bootstrap=0)
    assert found.objective < 1e-7
    assert np.abs(found.residuals).max() < 2e-3


@pytest.mark.parametrize("name", list(LAWS))
def test_derivatives_agree_with_differences(name: str) -> None:
    law = LAWS[name]
    natural = np.array([[law.published[0].values[k] for k in law.names]]) if law.published else None
    if natural is None:
        natural = np.array([TRUTHS[name]]) if name in TRUTHS else None
    x, centre = law.features(columns_of(name))
    theta = law.start_grid(2.5)[:1] if natural is None else law.recentre(natural, centre)
    log_loss = np.log(law.value(theta, x)) + 0.05 * np.sin(np.arange(36.0))
    free = np.ones(theta.shape[1], bool)
    problem = Problem(law, x, log_loss, np.ones((1, 36)), np.inf, free)
    step = 1e-5 * np.maximum(np.abs(theta[0]), 1e-3)
    up, down = theta + np.diag(step), theta - np.diag(step)
    gradient, hessian, _ = problem.newton(theta, np.zeros(1))
    numeric = (problem.objective(up) - problem.objective(down)) / (2 * step)
    assert gradient[0] * step == pytest.approx(numeric * step, rel=1e-3, abs=1e-9)
    if law.curvature(theta, law.jacobian(theta, x)[1], x, np.ones((1, 36))) is not None:
        slope = (problem.newton(up, np.zeros(len(up)))[0] - problem.newton(down, np.zeros(len(up)))[0]) / (
            2 * step[:, None]
        )
        assert hessian[0] == pytest.approx(slope, rel=1e-3, abs=1e-4 * np.abs(slope).max())


@pytest.mark.parametrize("name", list(LAWS))
def test_centring_and_back(name: str) -> None:
    law = LAWS[name]
    if name not in TRUTHS and not law.published:
        pytest.skip("no constants to try")
    values = TRUTHS[name] if name in TRUTHS else tuple(law.published[0].values[k] for k in law.names)
    natural = np.array([values])
    x, centre = law.features(columns_of(name))
    inner = law.recentre(natural, centre)
    assert law.uncentre(inner, centre) == pytest.approx(natural, rel=1e-9)
    assert law.value(inner, x)[0] == pytest.approx(law.loss(natural, columns_of(name))[0], rel=1e-9)


@pytest.mark.parametrize("name", ["coupled", "kaplan", "over-training", "bounded-additive"])
def test_the_closed_form_split_is_the_best_one(name: str) -> None:
    law, truth = LAWS[name], np.array([TRUTHS[name]])
    found = Fit(law=name, estimator="published", params=dict(zip(law.names, truth[0].tolist(), strict=True)))
    N, D, L = (float(v[0]) for v in found.split().optimum(truth, 1e21))
    near = N * np.geomspace(0.2, 5.0, 2001)
    losses = found.loss(near, 1e21 / 6 / near)
    assert pytest.approx(losses.min(), rel=1e-9) == L
    assert near[losses.argmin()] == pytest.approx(N, rel=2e-3)
    assert pytest.approx(1e21) == 6 * N * D
    assert found.compute_for(L)[0] == pytest.approx(1e21, rel=1e-6)


def test_repeated_data_has_a_numerical_split() -> None:
    best = Fit.of_published("muennighoff-2023").optimum(1e22, unique_tokens=25e9)
    # The authors' allocation, on a grid of 500 points: 7.02e9 parameters, 237e9 tokens, 9.5 epochs.
    assert best.params.value == pytest.approx(7.02e9, rel=0.02)
    assert best.tokens.value == pytest.approx(2.373e11, rel=0.02)


# --- the repeated-data runs -------------------------------------------------------------------------


def repeated_runs() -> dict[str, Array]:
    path = SHARED / "datablations_182.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the project (shared/data/scaling)")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    names = {"params": "params", "tokens": "tokens", "unique_tokens": "unique_tokens", "val_loss": "loss"}
    return {role: np.array([float(r[c]) for r in rows]) for c, role in names.items()}


def test_repeated_data_objective_and_its_flat_valley() -> None:
    table = repeated_runs()
    law, fixed = "repeated-data", REPEATED
    x, centre = LAWS[law].features(table, centred=False)
    log_loss = np.log(table["loss"])[None]
    problem = Problem(LAWS[law], x, log_loss, np.ones((1, 182)), 1e-3, np.ones(7, bool))
    published = np.array([[*fixed.values(), 15.387756, 5.309743]])
    assert problem.objective(LAWS[law].recentre(published, centre))[0] == pytest.approx(0.0158259, abs=5e-8)
    valley = np.array([[*fixed.values(), 47.0, 2.33]])
    assert problem.objective(LAWS[law].recentre(valley, centre))[0] == pytest.approx(0.015807, abs=5e-7)
    found = fit(table, law=law, fixed=fixed, bootstrap=300)
    # The valley goes on: its lowest point is past the local minimum at (47.0, 2.33).
    assert found.objective == pytest.approx(0.0158047, abs=5e-8)
    assert found.params["RD_star"] == pytest.approx(95.4, rel=0.02)
    assert found.params["RN_star"] == pytest.approx(1.71, rel=0.02)
    words = " ".join(found.diagnostics)
    assert "RD_star is not identified" in words
    assert "RN_star is not identified" in words


def test_fixed_parameters_stay_and_nonsense_is_refused() -> None:
    law, truth = LAWS["coupled"], np.array([TRUTHS["coupled"]])
    table = {**columns_of("coupled"), "loss": law.loss(truth, columns_of("coupled"))[0]}
    found = fit(
        table, law="coupled", fixed={"alpha": 0.41, "A": 3355.0}, bootstrap=0, estimator="least-squares"
    )
    assert found.params["A"] == pytest.approx(3355.0)
    assert found.fixed == ("alpha", "A")
    assert found.objective < 1e-7
    with pytest.raises(FitError, match="no parameter 'gamma'"):
        fit(table, law="coupled", fixed={"gamma": 1.0})
