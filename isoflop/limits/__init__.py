"""Where growth ends: for the industry's largest training run, and for one project.

A limit is a largest amount of training compute: for the industry at a date, for a project as it is. Each is
made of quantities with their uncertainty (`assumptions.toml`, which a user may replace), turned into FLOPs in
`conversions`, and met with growth in `industry`, or counted from the last plan or run in `user`.
"""

from isoflop.limits.answers import IndustryAnswer, IndustryLimit, Limit, UserAnswer
from isoflop.limits.assumptions import LIMITS, Assumptions, Quantity, read_assumptions
from isoflop.limits.growth import Averaged, Exponential, of_table
from isoflop.limits.industry import industry
from isoflop.limits.user import Standing, standing, user

__all__ = [
    "LIMITS",
    "Assumptions",
    "Averaged",
    "Exponential",
    "IndustryAnswer",
    "IndustryLimit",
    "Limit",
    "Quantity",
    "Standing",
    "UserAnswer",
    "industry",
    "of_table",
    "read_assumptions",
    "standing",
    "user",
]
