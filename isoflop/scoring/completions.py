"""Do a model's continuations of Python parse?"""

from __future__ import annotations

import ast
import codeop
import hashlib
import warnings
from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from tokenizers import Tokenizer

from isoflop.corpus import end_token, heldout_spans, heldout_tokens, tokenizer
from isoflop.engines import Engine
from isoflop.engines.reading import continued
from isoflop.errors import CorpusError, ProjectError
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Interval, Record
from isoflop.store import HASH_DIGITS

NEW_TOKENS = 64
PYTHON_SHARE = 0.5  # of the held-out documents looked at that must be Python
LOOKED_AT = 64
LEVEL = 0.9
FLAGS = ast.PyCF_ONLY_AST | codeop.PyCF_ALLOW_INCOMPLETE_INPUT  # type: ignore[attr-defined]
STAGE = "completions"


class Case(Record):
    """One continuation."""

    hash: str  # first 16 hex digits of the SHA-256 of the document
    line: int  # after which it was cut, from 1
    text: str  # what the model wrote
    parses: bool
    true_parses: bool
    other_parses: bool


class Completions(Record):
    """Shares of continuations that parse, each with Wilson's interval."""

    documents: int  # that were cut, some more than once
    python_share: float  # of the held-out documents looked at
    new_tokens: int
    temperature: float
    seed: int
    model: Interval
    true: Interval  # of the documents' own text after the cut: what a perfect model reaches
    other: Interval  # of text from another document in its place: what Python that does not belong reaches
    cases: tuple[Case, ...]


def completions(
    engine: Engine, corpus: Corpus, number: int, *, new_tokens: int = NEW_TOKENS, temperature: float = 0.0,
    seed: int = 0, progress: Progress | None = None,
) -> Completions:  # fmt: skip
    """Let an engine continue `number` cuts of held-out Python by `new_tokens` tokens, and parse the results.

    Documents that parse are cut at the end of a line, drawn with `seed`, that as many tokens follow; what
    fits of the text before is the prompt. Of the continuation, the last line is dropped, for it may not be
    whole, and then further lines while Python says that more must come (an open bracket, string or block).
    It counts as parsing if what is left has a line of code and the document up to there parses: a mistake is
    never cut away. A model that ends the document is taken at its word, and nothing is dropped.

    Raises CorpusError where the text is not Python or its documents are too short, ProjectError for numbers
    that cannot be.
    """
    _check(engine, number, new_tokens, temperature)
    progress = progress or Silent()
    reader = _Cutter(corpus, new_tokens, seed)
    rng = np.random.default_rng((seed, 1))
    decoder, end, room = tokenizer(corpus), end_token(corpus), engine.context - new_tokens
    progress.start(STAGE, number, "completions")
    cases: list[Case] = []
    other = ""
    for cut in islice(reader.cuts(), number + 1):
        if other:
            prompt = [end, *cut.prompt][-room:]
            following = continued(engine, prompt, temperature=temperature, rng=rng, ends={end})
            ids = list(islice(following, new_tokens))
            text = decoder.decode(ids, skip_special_tokens=False)
            cases.append(Case(
                hash=cut.hash, line=cut.before.count("\n") + 1, text=text,
                parses=parses(cut.before, text, ended=len(ids) < new_tokens),
                true_parses=parses(cut.before, cut.after), other_parses=parses(cut.before, other),
            ))  # fmt: skip
            progress.update(STAGE, len(cases))
        other = cut.after
    progress.finish(STAGE, f"{len(cases):,} continuations")
    return Completions(
        documents=len({case.hash for case in cases}), python_share=reader.python_share,
        new_tokens=new_tokens, temperature=temperature, seed=seed,
        model=_share([case.parses for case in cases]), true=_share([case.true_parses for case in cases]),
        other=_share([case.other_parses for case in cases]), cases=tuple(cases),
    )  # fmt: skip


def parses(before: str, after: str, *, ended: bool = False) -> bool:
    """Whether Python goes on from `before` with `after`, by the rule of `completions`."""
    lines = after.split("\n")
    if not ended:
        lines.pop()
    while any(line.strip() and not line.strip().startswith("#") for line in lines):
        state = _state(before + "\n".join(lines) + "\n")
        if state != "unfinished" or ended:
            return state == "whole"
        lines.pop()
    return False


def _state(text: str) -> str:
    """Python that is "whole", "unfinished" or "wrong"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. of an escape that is none
            compile(text, "", "exec", FLAGS)
    except SyntaxError as error:
        return "unfinished" if error.msg == "incomplete input" else "wrong"
    except (ValueError, RecursionError, MemoryError):  # a null byte; too deep
        return "wrong"
    return "whole"


def is_python(text: str) -> bool:
    """Whether a text parses and says more than bare expressions, as a word or a list of numbers does."""
    if _state(text) != "whole":
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return any(not isinstance(part, ast.Expr) for part in ast.parse(text).body)


class _Cut(NamedTuple):
    """A document in two."""

    hash: str
    before: str  # without the end of its last line
    prompt: list[int]  # tokens of `before`
    after: str  # the next tokens


class _Cutter:
    """Cuts of held-out documents that are Python. Raises CorpusError when few are."""

    def __init__(self, corpus: Corpus, new_tokens: int, seed: int) -> None:
        self._tokens, self._tokenizer = heldout_tokens(corpus), tokenizer(corpus)
        self._spans, self._rng = heldout_spans(corpus), np.random.default_rng((seed, 0))
        self._rng.shuffle(self._spans)
        self._new, self._corpus = new_tokens, corpus
        looked = [is_python(self._text(span)) for span in self._spans[:LOOKED_AT].tolist()]
        self.python_share = sum(looked) / len(looked)
        if self.python_share < PYTHON_SHARE:
            raise CorpusError(
                f"{self.python_share:.0%} of the held-out documents of corpus {corpus.id} are Python, and "
                "completions are judged by whether Python parses them",
                hint="leave --completions out",
            )

    def cuts(self) -> Iterator[_Cut]:
        """Without end: each document once, then each once more. Raises CorpusError when none can be cut."""
        for _ in count():
            found = False
            for span in self._spans.tolist():
                cut = self._cut(self._text(span), span)
                if cut is not None:
                    found = True
                    yield cut
            if not found:
                raise CorpusError(
                    f"no held-out document of corpus {self._corpus.id} is Python with a line that "
                    f"{self._new} tokens follow",
                    hint="let fewer be written with --new-tokens",
                )

    def _text(self, span: tuple[int, int]) -> str:
        return _decoded(self._tokenizer, self._tokens[span[0] : span[1]].tolist())

    def _cut(self, text: str, span: tuple[int, int]) -> _Cut | None:
        """One at random, if the document parses and is long enough."""
        if not is_python(text) or span[1] - span[0] <= self._new:
            return None
        last = len(_decoded(self._tokenizer, self._tokens[span[0] : span[1] - self._new].tolist()))
        places = [i for i in range(1, last) if text[i] == "\n" and not text[i - 1].isspace()]
        if not places:
            return None
        place = places[self._rng.integers(len(places))]
        prompt = self._tokenizer.encode(text[:place], add_special_tokens=False).ids
        after = self._tokenizer.encode(text[place:], add_special_tokens=False).ids[: self._new]
        return _Cut(
            hash=hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS], before=text[:place],
            prompt=prompt, after=_decoded(self._tokenizer, after),
        )  # fmt: skip


def _decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _check(engine: Engine, number: int, new_tokens: int, temperature: float) -> None:
    """Raises ProjectError."""
    if number < 1:
        raise ProjectError(f"{number} completions are too few", hint="give e.g. --completions 100")
    if not 0 < new_tokens < engine.context:
        raise ProjectError(
            f"{new_tokens} new tokens do not fit into a context of {engine.context} after a prompt",
            hint="give fewer with --new-tokens",
        )
    if not 0 <= temperature < np.inf:
        raise ProjectError(
            f"a temperature of {temperature:g} cannot be", hint="give 0 for the likeliest token"
        )


def _share(outcomes: list[bool]) -> Interval:
    """With Wilson's interval (1927), which holds near 0 and 1 as well."""
    found = binomtest(sum(outcomes), len(outcomes))
    interval = found.proportion_ci(LEVEL, method="wilson")
    return Interval(
        value=float(found.statistic),
        low=float(interval.low),
        high=float(interval.high),
        level=LEVEL,
        of="share",
    )
