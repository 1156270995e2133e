"""Pairs of a text and its translation, from catalogues of messages (.mo) and translation memories (.tmx)."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from xml.etree import ElementTree

from isoflop.errors import AdaptError
from isoflop.examples.generated import generated, leave_out

if TYPE_CHECKING:
    from datasets import Dataset

CATALOGUES = (".mo", ".tmx", ".tmx.gz")
CODES = frozenset({"bpt", "ept", "it", "ph", "ut"})  # of TMX 1.4b: what they hold is markup, not text
LANGUAGES = ("{http://www.w3.org/XML/1998/namespace}lang", "lang")  # the second is that of TMX 1.1

Pair = tuple[str, str]


def read_pairs(paths: Sequence[Path], place: Path, notes: list[str]) -> Dataset:
    """Columns source and target. Pairs that lack a side, and plural forms, are left out and counted.

    Raises AdaptError where polib is absent, or more than a tenth of the files cannot be read.
    """
    from datasets import Value

    bad: list[str] = []
    dropped = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal dropped
        for path in paths:
            try:
                for source, target in _messages(path) if path.suffix == ".mo" else _units(path):
                    if source.strip() and target.strip():
                        yield {"source": source, "target": target}
                    else:
                        dropped += 1
            except (OSError, ValueError, LookupError, struct.error, EOFError, SyntaxError):
                bad.append(path.name)

    if any(path.suffix == ".mo" for path in paths):
        _polib()
    found = generated(rows, {"source": Value("string"), "target": Value("string")})
    leave_out(bad, len(paths), place, notes)
    if dropped:
        notes.append(f"{dropped} messages of {place} have no translation, or plural forms, and are left out")
    return found


def _polib() -> Any:
    try:
        import polib
    except ImportError:
        raise AdaptError("polib is not installed", hint="pip install 'isoflop[adapt]'") from None
    return polib


def _messages(path: Path) -> Iterator[Pair]:
    """Of a gettext catalogue; one with plural forms comes without a target."""
    for entry in _polib().mofile(str(path)):
        yield entry.msgid, "" if entry.msgid_plural else entry.msgstr


def _units(path: Path) -> Iterator[Pair]:
    """Of a translation memory, one unit at a time.

    The source is of the language that the header names (or the unit's first), the target of the first other
    language in the file; a unit without both comes with an empty side. The parser of the standard library
    neither fetches a document type nor follows an entity to a file.
    """
    source = target = ""
    with _opened(path) as file:
        events = ElementTree.iterparse(file, ("start", "end"))
        root = next(events)[1]
        for event, element in events:
            if event == "end" and element.tag == "header":
                source = _language(element.get("srclang", ""))
            if event == "end" and element.tag == "tu":
                texts = {_language_of(tuv): _text(tuv.find("seg")) for tuv in element.iter("tuv")}
                if source not in texts and source in ("", "*all*"):
                    source = next(iter(texts), "")
                target = target or next((language for language in texts if language != source), "")
                yield texts.get(source, ""), texts.get(target, "")
                root.clear()


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _language_of(tuv: ElementTree.Element) -> str:
    return _language(next((tuv.attrib[name] for name in LANGUAGES if name in tuv.attrib), ""))


def _language(code: str) -> str:
    return code.lower().replace("_", "-")


def _text(element: ElementTree.Element | None) -> str:
    """Without the codes of its formatting."""
    if element is None:
        return ""
    inside = "".join(("" if part.tag in CODES else _text(part)) + (part.tail or "") for part in element)
    return (element.text or "") + inside
