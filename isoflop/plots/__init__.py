"""Pictures: `project` has those of a project folder, `laws` those of a law, `families` that of several,
`verdicts` of judged artifacts; `style` says how all of them look."""

from isoflop.plots.design import design_data
from isoflop.plots.laws import (
    LAW_PICTURES,
    contour_data,
    frontier_data,
    holdout_data,
    influence_data,
    isoflop_data,
    law_figure,
    pairs_data,
    residuals_data,
    save_law_pictures,
)
from isoflop.plots.project import (
    PICTURES,
    Scene,
    curves_data,
    figure,
    predicted_data,
    save_overview,
)
from isoflop.plots.style import PALETTE, dark, power, short
from isoflop.plots.verdicts import pareto_data, waterfall_data

__all__ = [
    "LAW_PICTURES",
    "PALETTE",
    "PICTURES",
    "Scene",
    "contour_data",
    "curves_data",
    "dark",
    "design_data",
    "figure",
    "frontier_data",
    "holdout_data",
    "influence_data",
    "isoflop_data",
    "law_figure",
    "pairs_data",
    "pareto_data",
    "power",
    "predicted_data",
    "residuals_data",
    "save_law_pictures",
    "save_overview",
    "short",
    "waterfall_data",
]
