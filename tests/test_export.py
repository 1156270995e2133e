"""Draws for other tools: arviz reads them, and nothing calls them a posterior."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from test_laws import ladder, mini

from isoflop import __version__
from isoflop.errors import FitError
from isoflop.laws import Fit, fit
from isoflop.laws.export import write_draws

arviz = pytest.importorskip("arviz", reason="the extra isoflop[arviz] is not installed")


def test_a_dataset_has_the_draws_and_says_what_they_are() -> None:
    data = mini().to_xarray()
    assert dict(data.sizes) == {"chain": 1, "draw": len(mini().draws)}
    assert list(data.data_vars) == list(mini().params)
    for i, name in enumerate(mini().params):
        assert (data[name].to_numpy()[0] == mini().draws_array[:, i]).all()
    assert data.attrs["law"] == "chinchilla"
    assert data.attrs["isoflop_version"] == __version__
    assert data.attrs["estimator"] == "huber-sum"
    assert "not draws of a posterior" in data.attrs["what"]


def test_arviz_summarises_draws_and_keeps_them_as_netcdf(tmp_path: Path) -> None:
    data = mini().to_inference_data()
    assert set(data.groups()) == {"posterior", "observed_data", "constant_data"}
    table = arviz.summary(data, hdi_prob=0.9, round_to="none")
    for name, error in mini().se.items():
        assert table.loc[name, "sd"] == pytest.approx(error, rel=1e-6)
    assert (data.observed_data["loss"].to_numpy() == mini().observations.loss).all()
    assert np.exp(data.observed_data["log_loss"].to_numpy()) == pytest.approx(mini().observations.loss)
    assert (data.constant_data["params"].to_numpy() == mini().observations.params).all()
    assert len(set(data.constant_data["cluster"].to_numpy())) == mini().n_clusters
    write_draws(mini(), tmp_path / "draws.nc")
    again = arviz.from_netcdf(tmp_path / "draws.nc")
    assert again.posterior.equals(data.posterior)
    assert again.posterior.attrs["formula"] == data.posterior.attrs["formula"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_of_draws_read_back(tmp_path: Path, suffix: str) -> None:
    from pyarrow import csv, parquet

    path = tmp_path / "new" / f"draws{suffix}"
    write_draws(mini(), path)
    table = csv.read_csv(path) if suffix == ".csv" else parquet.read_table(path)
    assert table.column_names == list(mini().params)
    assert table["alpha"].to_numpy() == pytest.approx(mini().draws_array[:, 3], rel=1e-15)


def folder_named(path: Path) -> Path:
    path.mkdir()
    return path


def test_what_cannot_be_exported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FitError, match="cannot be written as"):
        write_draws(mini(), tmp_path / "draws.rds")
    with pytest.raises(FitError, match="is a folder"):
        write_draws(mini(), folder_named(tmp_path / "draws.csv"))
    with pytest.raises(FitError, match="no draws"):
        Fit.of_published("besiroglu-2024").to_xarray()
    with pytest.raises(FitError, match="no draws"):
        write_draws(fit(ladder(), bootstrap=0), tmp_path / "none.csv")
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(FitError, match="needs arviz") as caught:
        mini().to_inference_data()
    assert "pip install 'isoflop[arviz]'" in caught.value.hint
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(FitError, match="needs xarray"):
        mini().to_xarray()


def test_aic_is_aicc_without_its_correction() -> None:
    found = mini()
    k, n = 6, found.n
    assert found.aic is not None
    assert found.aicc == pytest.approx(found.aic + 2 * k * (k + 1) / (n - k - 1))
    assert Fit.of_published("besiroglu-2024").aic is None
