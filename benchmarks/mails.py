"""What a reader of a mail sees: its subject and its text, without what tells how it was collected."""

from __future__ import annotations

import re
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from html.parser import HTMLParser

LIST_NAME = re.compile(r"\[[^\]]{1,40}\]\s*")  # as lists put it before a subject
RULE = re.compile(
    r"^(?:>\s?)*(?:[_-]{20,}|--)\s*$", re.MULTILINE
)  # before the footer of a list, quoted or not
FOOTER = re.compile(r"mailing list|listinfo|listmaster|sf\.net|yahoo! groups", re.IGNORECASE)
FOOTER_LINES = 16  # at most
UNSEEN = ("script", "style", "title")


class Text(HTMLParser):
    """The text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.unseen = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.unseen += tag in UNSEEN

    def handle_endtag(self, tag: str) -> None:
        self.unseen -= tag in UNSEEN and self.unseen > 0

    def handle_data(self, data: str) -> None:
        if not self.unseen:
            self.parts.append(data)


def words_of(raw: bytes) -> str:
    """Subject and text in one line of words each; "" where a mail has neither."""
    mail = message_from_bytes(raw)
    subject = LIST_NAME.sub("", _decoded(mail.get("Subject", "")))
    body = "\n".join(_text(part) for part in mail.walk() if part.get_content_maintype() == "text")
    return "\n".join(filter(None, (" ".join(subject.split()), " ".join(without_footer(body).split()))))


def without_footer(body: str) -> str:
    """The text up to the rules below which a list says what it is."""
    for rule in reversed(list(RULE.finditer(body))):
        last = body[rule.end() :].strip()
        if last.count("\n") >= FOOTER_LINES or not FOOTER.search(last):
            break
        body = body[: rule.start()]
    return body


def _decoded(header: object) -> str:
    try:
        return str(make_header(decode_header(str(header))))
    except (LookupError, UnicodeError, ValueError):  # an encoding that is none
        return str(header)


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    try:
        text = payload.decode(part.get_content_charset("latin-1"), errors="replace")
    except LookupError:
        text = payload.decode("latin-1")
    if part.get_content_subtype() != "html":
        return text
    page = Text()
    page.feed(text)
    return " ".join(page.parts)
