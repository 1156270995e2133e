"""Smoothly broken power laws of one covariate: Caballero et al. 2210.14891 (eq. 1), any number of breaks.

    y = a + b x^-c0 prod_i (1 + (x/d_i)^(1/f_i))^(-c_i f_i)

d_i is where break i lies, c_i how much it changes the slope, f_i how sharp it is (small is sharp).
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.solve import Array

FACTOR = 30.0  # breaks are looked for within this factor of the middle of the data


def broken(breaks: int) -> Equation:
    """The law with that many breaks; `broken-1` is the paper's usual choice."""
    factors = "".join(f"*(1 + (x/d{i})**(1/f{i}))**(-c{i}*f{i})" for i in range(1, breaks + 1))
    each = [
        p
        for i in range(1, breaks + 1)
        for p in (
            Parameter(f"d{i}", unit="X", log=True),
            Parameter(f"c{i}", -5.0, 5.0),
            Parameter(f"f{i}", 0.05, 5.0),
        )
    ]

    def starts(level: float) -> Array:
        spread = np.geomspace(1 / FACTOR, FACTOR, 5)
        places = np.array([p for p in grid(*[spread] * breaks) if (np.diff(p) > 0).all()]) if breaks else None
        one = grid(0.5 * level, 0.5 * level, (0.05, 0.2, 0.5))
        if places is None:
            return one
        rows = []
        for head in one:
            for place in places:
                for change in (-0.5 * head[2], head[2]):
                    rows.append([*head, *(v for d in place for v in (d, change, 0.5))])
        return np.array(rows)

    return Equation(
        name=f"broken-{breaks}",
        formula=f"y = a + b x^-c0 prod_(i=1..{breaks}) (1 + (x/d_i)^(1/f_i))^(-c_i f_i)",
        equation=f"a + b*x**(-c0){factors}",
        covariates=(Covariate("x", "x", "X"),),
        parameters=(Parameter("a"), Parameter("b", unit="X**c0"), Parameter("c0", -5.0, 5.0), *each),
        linear=2,
        starts=starts,
        source="Caballero et al. 2210.14891, eq. 1",
        exact_hessian=breaks < 2,
    )


BROKEN = tuple(broken(n) for n in (1, 2, 3))
