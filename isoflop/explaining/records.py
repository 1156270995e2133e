"""What explaining finds, as it is printed, saved and put on the card."""

from __future__ import annotations

from isoflop.metrics.protocol import Comparison, Score
from isoflop.records import Interval, Record


class Word(Record):
    """A word of an input and its share in an output."""

    text: str
    start: int  # characters of the input; of tokens that were given apart, of those joined by blanks
    end: int
    attribution: float  # in the unit of the output


class Attribution(Record):
    """How much each word of a text has moved a model's output, by integrated gradients."""

    text: str
    words: tuple[Word, ...]
    output: str  # the label that it is about; "the number" of a regression
    unit: str  # of attributions and outputs
    value: float  # the output
    baseline: float  # the output where every word is the baseline's token
    baseline_token: str
    total: float  # sum of the attributions; of the special tokens too
    completeness_error: float  # |total - (value - baseline)| / |value - baseline|
    steps: int  # points of the path
    cut: bool = False  # the end of the text was not read


class Faithfulness(Record):
    """Whether an output hangs on the words that attributions name (DeYoung et al., arXiv 1911.03429).

    Each is a mean over texts of a change of the output, of which `output` says what it is.
    """

    share: float  # of a text's words that are taken out, or kept
    texts: int
    output: str
    comprehensiveness: Interval  # change when the named words are taken out: more is better
    random_comprehensiveness: Interval  # when as many random words are
    comprehensiveness_gain: Interval  # the difference, text by text
    sufficiency: Interval  # change when the named words alone are kept: less is better
    random_sufficiency: Interval
    sufficiency_gain: Interval  # random less named


class Slice(Record):
    """Some of the test examples, and how the model does on them."""

    name: str
    kind: str  # label, length, column or word
    score: Score  # mean over its examples
    others: float  # the same over the examples outside it
    p: float  # that the examples inside are no worse than those outside, one-sided
    q: float  # p, with as many looks reckoned in (Benjamini and Hochberg)
    worse: bool  # q is below the level


class Slices(Record):
    """Every slice that was looked at, the worst first."""

    metric: str
    level: float  # share of false findings among those called worse, at most
    looks: int
    slices: tuple[Slice, ...]
    notes: tuple[str, ...] = ()


class Disturbed(Record):
    """The score under one perturbation against the score on the same examples undisturbed."""

    perturbation: str  # of `perturb.PERTURBATIONS`
    rate: float
    comparison: Comparison  # first: undisturbed, second: disturbed


class Gap(Record):
    """A difference between two groups of examples: highest less lowest."""

    measure: str  # a metric, or a rate and its label
    highest: str
    lowest: str
    values: dict[str, float]  # by group
    gap: Interval  # holds for all pairs of groups at once


class Fairness(Record):
    """How differently a model treats the groups of a column."""

    column: str
    groups: dict[str, int]  # examples
    too_small: dict[str, int]  # left out
    scores: dict[str, tuple[Score, ...]]  # by group
    gaps: tuple[Gap, ...]


class Bin(Record):
    """Test examples of about one confidence."""

    low: float
    high: float
    examples: int
    confidence: float  # mean
    accuracy: float


class Reliability(Record):
    """How often a label is right whose probability is said to be so much."""

    bins: tuple[Bin, ...]
    error: Score  # expected calibration error


class Explained(Record):
    """All that `isoflop explain` has found."""

    task: str
    data: str
    examples: int
    scores: tuple[Score, ...] = ()
    attributions: tuple[Attribution, ...] = ()
    faithfulness: Faithfulness | None = None
    slices: Slices | None = None
    robustness: tuple[Disturbed, ...] = ()
    fairness: Fairness | None = None
    reliability: Reliability | None = None
    pictures: tuple[str, ...] = ()  # names of files beside the card
    notes: tuple[str, ...] = ()
