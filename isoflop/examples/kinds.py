"""What a column may hold: how it is known by its values, and put in the one form that tasks read.

To add one, write its functions and a line in KINDS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from isoflop.examples.media import IMAGES, SOUNDS

FEW = 5  # values of a column are few where each stands in so many rows on average
Values = Sequence[Any]  # those of some rows that are not None


def _is_text(values: Values) -> bool:
    return all(isinstance(value, str) for value in values) and not _is_number(values)


def _is_number(values: Values) -> bool:
    return all(not isinstance(value, bool) and _float(value) is not None for value in values)


def _is_label(values: Values) -> bool:
    return all(isinstance(value, str | int | float | bool) for value in values)


def _is_list(values: Values) -> bool:
    return all(isinstance(value, list) and not any(isinstance(v, dict) for v in value) for value in values)


def _is_cut(values: Values) -> bool:
    return _is_list(values) or _is_text(values)


def _is_messages(values: Values) -> bool:
    return all(isinstance(value, list) and all("role" in turn for turn in value) for value in values)


def _is_answers(values: Values) -> bool:
    return _is_text(values) or all(isinstance(value, dict | list) for value in values)


def _is_file(suffixes: Sequence[str]) -> Callable[[Values], bool]:
    def found(values: Values) -> bool:
        paths = [value.get("path") or "" if isinstance(value, dict) else value for value in values]
        held = [isinstance(value, dict) and bool(value.get("bytes")) for value in values]
        return all(
            has or (isinstance(path, str) and Path(path).suffix.lower() in suffixes)
            for has, path in zip(held, paths, strict=True)
        )

    return found


def _many(values: Values) -> bool:
    return len(set(map(str, values))) * FEW > len(values)


def _few(values: Values) -> bool:
    return not _many(values)


def _any(values: Values) -> bool:
    return True


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str | None:
    found = "" if value is None else str(value)
    return found if found.strip() else None


def _label(value: Any) -> str | None:
    found = "" if value is None else str(value).strip()
    return found or None


def _labels(value: Any) -> list[str] | None:
    """Those of a list, or of a string cut at | or, where it has none, at commas."""
    if value is None:
        return None
    parts = re.split(r"\||,(?!.*\|)", value) if isinstance(value, str) else value
    return [str(part).strip() for part in parts if str(part).strip()]


def _words(value: Any) -> list[str] | None:
    parts = value.split() if isinstance(value, str) else value
    return [str(part) for part in parts] if parts else None


def _number(value: Any) -> float | None:
    found = _float(value)
    return found if found == found else None  # a NaN is none


def _answers(value: Any) -> dict[str, list[Any]]:
    """SQuAD's form; a start that is not given is -1."""
    if isinstance(value, Mapping):
        texts = [value["text"]] if isinstance(value["text"], str) else list(value["text"])
        starts = value.get("answer_start", [])
        starts = [starts] if isinstance(starts, int) else list(starts)
    else:
        texts, starts = [value] if isinstance(value, str) else list(value or []), []
    texts = [text for text in texts if text]
    return {"text": texts, "answer_start": starts if len(starts) == len(texts) else [-1] * len(texts)}


def _as_it_is(value: Any) -> Any:
    return value or None


@dataclass(frozen=True)
class Kind:
    """`fits` says whether a column of a fitting name may be it, `tells` whether one of any name is; `form`
    gives None for what a task cannot use. `column` names its feature: "" stays as it is."""

    says: str
    fits: Callable[[Values], bool]
    tells: Callable[[Values], bool]
    form: Callable[[Any], Any]
    column: str = ""


TEXT = Kind("text", _is_text, lambda v: _is_text(v) and _many(v), _text, "string")
KINDS: Mapping[str, Kind] = {
    "text": TEXT,
    "question": TEXT,
    "context": TEXT,
    "label": Kind("few distinct values", _is_label, lambda v: _is_label(v) and _few(v), _label, "string"),
    "labels": Kind("lists of labels", lambda v: _is_cut(v) or _is_label(v), _is_list, _labels, "strings"),
    "number": Kind("numbers", _is_number, _is_number, _number, "number"),
    "tokens": Kind(
        "lists of many words", _is_cut, lambda v: _is_list(v) and _many([*chain(*v)]), _words, "strings"
    ),
    "tags": Kind(
        "lists of few words", _is_cut, lambda v: _is_list(v) and _few([*chain(*v)]), _words, "strings"
    ),
    "image": Kind("images", _is_file(IMAGES), _is_file(IMAGES), _as_it_is),
    "audio": Kind("sounds", _is_file(SOUNDS), _is_file(SOUNDS), _as_it_is),
    "messages": Kind("lists of role and content", _is_messages, _is_messages, _as_it_is),
    "answers": Kind(
        "answers", _is_answers, lambda v: all(isinstance(x, dict) for x in v), _answers, "answers"
    ),
}
