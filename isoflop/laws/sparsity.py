"""Sparse training: Frantar et al. 2309.08520 (eq. 1), with N the parameters that are not zero."""

from __future__ import annotations

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.published import Published


def _published(name: str, values: tuple[float, ...], source: str) -> Published:
    keys = ("c", "a_S", "c_S", "a_D", "b_S", "b_N", "b_D")
    return Published(name, dict(zip(keys, values, strict=True)), f"Frantar et al. 2309.08520: {source}")


SPARSITY = Equation(
    name="sparsity",
    formula="L = (a_S (1 - S)^b_S + c_S) N^-b_N + (a_D/D)^b_D + c",
    equation="(a_S*(1 - S)**b_S + c_S)*N**(-b_N) + (a_D/D)**b_D + c",
    covariates=(
        Covariate("N", "params", "N"),
        Covariate("D", "tokens", "D"),
        Covariate("S", "sparsity"),
    ),
    parameters=(
        Parameter("c"),
        Parameter("a_S", unit="N**b_N"),
        Parameter("c_S", unit="N**b_N"),
        Parameter("a_D", unit="D", log=True),
        Parameter("b_S", 0.0, 3.0),
        Parameter("b_N", 0.02, 2.0),
        Parameter("b_D", 0.02, 2.0),
    ),
    linear=3,
    starts=lambda level: grid(
        level / 3, level / 6, level / 6, (0.01, 0.1), (0.4, 0.8), (0.2, 0.4), (0.2, 0.4, 0.8)
    ),
    source="Frantar et al. 2309.08520, eq. 1; N counts what is not zero",
    published=(
        _published(
            "frantar-2023-t5", (0.651, 16.8, 45.0, 6.90e8, 0.722, 0.245, 0.203), "T5 on C4, D in tokens"
        ),
        _published(
            "frantar-2023-vit",
            (4.517, 294.0, 468.0, 2.37e8, 0.821, 0.392, 0.890),
            "ViT on JFT-4B, D in images",
        ),
    ),
)
