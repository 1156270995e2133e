"""Presidio beside our own recognisers, where isoflop[presidio] is installed: numbers of more kinds, and names
where a model of spaCy for English is installed too.

Ours go first; what they leave is read by Presidio sentence by sentence, whole texts and streams alike. It has
no idea of a text that comes in pieces, and a model needs the sentence to know a name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from threading import Lock
from typing import Any, NamedTuple

from isoflop.errors import ServeError
from isoflop.serve.masking.masker import KINDS, Masked, Masker, MaskStream
from isoflop.serve.protocol import Span

OURS = {"CREDIT_CARD": "card", "IBAN_CODE": "iban", "IP_ADDRESS": "ip", "PHONE_NUMBER": "phone"}
NAMES = ("LOCATION", "NRP", "ORGANIZATION", "PERSON")  # which only a model finds
# These two fetch a list of domains from the net; ours finds addresses, and a URL alone is nobody's.
LEFT_OUT = ("EmailRecognizer", "UrlRecognizer")
LEARNED = "SpacyRecognizer"  # says that it finds more than the models do
LEAST = 0.4  # of the score: what its patterns alone make likely, or words around it do
LANGUAGE = "en"
LARGEST_FIRST = ("trf", "lg", "md", "sm")  # sizes in names of spaCy's models
SENTENCE, LONG = re.compile(r"\n|[.!?\u3002\uff01\uff1f]\s"), 240
SPACE, LONGEST = re.compile(r"\s"), 480  # characters of what is read together
PLACEHOLDER = re.compile(r"\[[A-Z_]{2,30}\]")

_reading = Lock()  # models of spaCy are for one thread at a time


class Analyzer(NamedTuple):
    engine: Any
    entities: dict[str, str]  # of Presidio, by our kinds


def preferred() -> Callable[[Sequence[str]], Masker | Presidio]:
    """What makes the best masker there is here. Presidio is loaded now, which takes seconds."""
    if find_spec("presidio_analyzer") is None:
        return Masker
    _analyzer()
    return Presidio


@cache
def _analyzer() -> Analyzer:
    import spacy
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    class Blank(SpacyNlpEngine):  # type: ignore[misc]
        """Words, and nothing that was learned."""

        def load(self) -> None:
            self.nlp = {LANGUAGE: spacy.blank(LANGUAGE)}

    models = [name for name in spacy.util.get_installed_models() if name.startswith(f"{LANGUAGE}_")]
    models.sort(key=lambda name: [size not in name.split("_") for size in LARGEST_FIRST])
    named = [{"lang_code": LANGUAGE, "model_name": models[0] if models else "blank"}]
    language = (SpacyNlpEngine if models else Blank)(models=named)
    language.load()
    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=[LANGUAGE], nlp_engine=language)
    for name in LEFT_OUT:
        registry.remove_recognizer(name)
    engine = AnalyzerEngine(nlp_engine=language, registry=registry, supported_languages=[LANGUAGE])
    known = {
        entity for each in registry.recognizers if each.name != LEARNED for entity in each.supported_entities
    }
    known |= set(NAMES if models else ())
    return Analyzer(engine, {OURS.get(entity, entity.lower()): entity for entity in known})


class Presidio:
    """Masks some kinds: ours, Presidio's (named as it does, in small letters), or both."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self._engine, known = _analyzer()
        for kind in kinds:
            if kind in KINDS or kind in known:
                continue
            hint = f"name some of {', '.join(sorted({*KINDS, *known}))}"
            if kind.upper() in NAMES:
                hint = "install a model of spaCy: python -m spacy download en_core_web_sm"
            raise ServeError(f"there is no kind of personal data named {kind!r}", hint=hint)
        self.own = Masker([kind for kind in kinds if kind in KINDS])
        self._kinds = {known[kind]: kind for kind in kinds if kind in known}

    def mask(self, text: str) -> Masked:
        """The whole text, masked."""
        stream = self.stream()
        return Masked(stream.push(text) + stream.end(), stream.found)

    def items(self, text: str) -> list[Span]:
        """What is masked in a whole text, in order."""
        own, theirs = self.own.items(text), list[Span]()
        if not self._kinds:
            return own
        left = list(text)
        for item in own:
            left[item.start : item.end] = " " * (item.end - item.start)
        at = 0
        for sentence in _sentences("".join(left), last=True):
            theirs += (Span(item.tag, at + item.start, at + item.end) for item in self.found(sentence))
            at += len(sentence)
        return list(_apart([*own, *theirs]))

    def placeholder(self, kind: str, value: str) -> str:
        """What stands for a value."""
        return self.own.placeholder(kind, value)

    def stream(self) -> PresidioStream | MaskStream:
        """For a text that comes in pieces."""
        own = self.own.stream()
        return PresidioStream(self, own) if self._kinds else own

    def found(self, sentence: str) -> list[Span]:
        """What Presidio finds in a sentence, in order."""
        # It would take placeholders for names of companies.
        read = PLACEHOLDER.sub(lambda match: " " * len(match[0]), sentence)
        with _reading:
            results = self._engine.analyze(
                read, language=LANGUAGE, entities=list(self._kinds), score_threshold=LEAST
            )
        return list(_apart([Span(self._kinds[each.entity_type], each.start, each.end) for each in results]))


class PresidioStream:
    """A text that comes in pieces and goes out in sentences."""

    def __init__(self, masker: Presidio, own: MaskStream) -> None:
        self._masker, self._own = masker, own
        self._held, self._found = "", Counter[str]()

    @property
    def found(self) -> Counter[str]:
        """Items by kind, so far."""
        return self._own.found + self._found

    def push(self, text: str) -> str:
        """What can be said after this piece."""
        return self._said(self._own.push(text), last=False)

    def end(self) -> str:
        """What is left, at the end of the text."""
        return self._said(self._own.end(), last=True)

    def cut(self) -> str:
        """What is left where the text is cut."""
        return self._said(self._own.cut(), last=True)

    def _said(self, text: str, *, last: bool) -> str:
        self._held += text
        said: list[str] = []
        size = 0
        for sentence in _sentences(self._held, last=last):
            at = 0
            for tag, start, end in self._masker.found(sentence):
                said += sentence[at:start], self._masker.placeholder(tag, sentence[start:end])
                self._found[tag] += 1
                at = end
            said.append(sentence[at:])
            size += len(sentence)
        self._held = self._held[size:]
        return "".join(said)


def _sentences(text: str, *, last: bool) -> Iterator[str]:
    """The sentences that have ended, long ones in parts, whatever else comes; `last`: also what has not."""
    at = 0
    while end := _end(text, at):
        yield text[at:end]
        at = end
    if last and at < len(text):
        yield text[at:]


def _end(text: str, at: int) -> int:
    """Where the sentence that begins there ends; 0: not yet."""
    until = at + LONGEST
    found = SENTENCE.search(text, at, until), SPACE.search(text, at + LONG, until)
    return min((match.end() for match in found if match), default=until if len(text) >= until else 0)


def _apart(items: Sequence[Span]) -> Iterator[Span]:
    """In order; of two that lie over each other the first, and the rest of the second."""
    at = 0
    for item in sorted(items, key=lambda item: (item.start, -item.end)):
        if item.end > at:
            yield item._replace(start=max(at, item.start))
            at = item.end
