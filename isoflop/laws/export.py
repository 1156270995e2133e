"""Bootstrap draws for other tools: xarray, arviz and netCDF; CSV and Parquet for R and Julia.

arviz and xarray are an extra, loaded when used: pip install 'isoflop[arviz]'.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import FitError
from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit
from isoflop.store import disk_errors

if TYPE_CHECKING:
    import arviz
    import xarray

SUFFIXES = (".csv", ".parquet", ".nc")
MISSING = {"hint": "Install the extra: pip install 'isoflop[arviz]'."}


def to_xarray(fit: Fit) -> xarray.Dataset:
    """Draws of the parameters in natural units, one float64 variable each, dims (chain 1, draw k).

    Attributes say the law, how it was fitted and with what. Raises FitError without draws, or without xarray.
    """
    try:
        import xarray
    except ImportError as error:
        raise FitError("Exporting draws needs xarray, which is not installed.", **MISSING) from error
    draws = _draws(fit)
    return xarray.Dataset(
        {name: (("chain", "draw"), column[None]) for name, column in draws.items()},
        coords={"chain": [0], "draw": np.arange(len(fit.draws))},
        attrs=_facts(fit),
    )


def to_inference_data(fit: Fit) -> arviz.InferenceData:
    """arviz's groups: posterior (the bootstrap draws; attributes say so), observed_data and constant_data.

    observed_data holds loss and log_loss, dims (run,); constant_data the covariates and each run's cluster.
    There is no log_likelihood and no posterior_predictive: bootstrap draws are not a posterior, and waic, loo
    and predictive checks would say what they do not know. Raises FitError as `to_xarray`, or without arviz.
    """
    posterior = to_xarray(fit)
    try:
        import arviz
    except ImportError as error:
        raise FitError("InferenceData needs arviz, which is not installed.", **MISSING) from error
    seen = fit.observations
    cluster = seen.cluster or tuple(str(i) for i in range(fit.n))
    loss = np.array(seen.loss)
    return arviz.InferenceData(
        posterior=posterior,
        observed_data=_by_run({"loss": loss, "log_loss": np.log(loss)}),
        constant_data=_by_run({**seen.arrays(), "cluster": np.array(cluster)}),
    )


def write_draws(fit: Fit, path: Path) -> None:
    """The draws as a file, by its suffix: .csv or .parquet (a column a parameter), .nc (InferenceData).

    Raises FitError for another suffix, without draws, or, for .nc, without arviz.
    """
    if path.suffix not in SUFFIXES:
        raise FitError(f"Draws cannot be written as {path.name!r}.", hint=f"Use {', '.join(SUFFIXES)}.")
    if path.is_dir():
        raise FitError(f"{path} is a folder.", hint="Give a file name, e.g. --draws draws.csv.")
    with disk_errors(f"the draws {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".nc":
            to_inference_data(fit).to_netcdf(str(path))
            return
        import pyarrow
        from pyarrow import csv, parquet

        table = pyarrow.table(_draws(fit)).replace_schema_metadata(_facts(fit))
        if path.suffix == ".csv":
            csv.write_csv(table, path)
        else:
            parquet.write_table(table, path)


def _draws(fit: Fit) -> dict[str, Any]:
    """(k,) draws of each parameter."""
    if not fit.draws:
        raise FitError("The fit has no draws.", hint="Fit a table of runs, with bootstrap refits.")
    return dict(zip(law_named(fit.law).names, fit.draws_array.T, strict=True))


def _by_run(columns: Mapping[str, Any]) -> xarray.Dataset:
    import xarray

    return xarray.Dataset({name: (("run",), column) for name, column in columns.items()})


def _facts(fit: Fit) -> dict[str, str]:
    """What the draws are of, in words."""
    law = law_named(fit.law)
    return {
        "what": "Bootstrap draws of the parameters (a sampling distribution), not draws of a posterior.",
        "law": law.name,
        "formula": law.formula,
        "source": law.source,
        "units": "natural: loss as given (nats a token), params and tokens as counts",
        "estimator": fit.estimator,
        "bootstrap": fit.bootstrap,
        "seed": str(fit.seed),
        "runs": str(fit.n),
        "clusters": str(fit.n_clusters),
        "fixed": ", ".join(fit.fixed),
        "weak_prior": "yes" if fit.prior else "no",
        "isoflop_version": version("isoflop"),
        "created_at": datetime.now(UTC).isoformat(),
    }
