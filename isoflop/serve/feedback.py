"""What users say of answers, kept in the ledger, and made into data to learn from."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from isoflop.records import Record, digest
from isoflop.serve.calls import Call
from isoflop.serve.keys import Key
from isoflop.serve.traces import Traces, recognised
from isoflop.served import now
from isoflop.store import Project

KIND = "feedback"
RECENT = 10_000  # calls that are remembered, to know what answered

Rating = Literal["up", "down"]
UP: Rating = "up"


class Said(Record):
    """A message of a chat."""

    role: str
    content: str


class Feedback(Record):
    """One key's last word on one answer."""

    id: str
    request_id: str
    rating: Rating
    comment: str = ""
    prompt: str | tuple[Said, ...] | None = None  # where the client sent it
    answer: str | None = None
    edited: bool = True  # its texts are not what was asked and answered, or nobody has compared them
    key: str = ""  # name of whose request it was; "": the server was open
    model: str = ""  # that answered
    model_hash: str = ""
    at: str  # UTC, ISO 8601


class Answered(NamedTuple):
    """Whose a request was, and what answered it."""

    owner: str
    model: str
    hash: str
    traces: bytes  # of its texts


class Exported(NamedTuple):
    rows: list[dict[str, Any]]  # columns that the task generation reads
    ratings: int  # of that kind
    without: int  # of these, how many came without prompt and answer
    edited: int  # of these, how many have other texts than was answered, and are left out


class Feedbacks:
    """Keeps feedback in a project. As an Observer it remembers which model gave which answer.

    `mask` goes over every text before it is kept; what it raises is raised, and nothing is kept. `listeners`
    hear of each rating that is new. Only its own answers can be rated, since it began: of those before, the
    ones that the same key had rated already. Of what was asked and answered it remembers digests, by which it
    knows texts that the client has changed.
    """

    def __init__(
        self, project: Project, *, mask: Callable[[str], str] | None = None,
        listeners: Sequence[Callable[[str], None]] = (),
    ) -> None:  # fmt: skip
        self._project, self._listeners = project, tuple(listeners)
        self._mask: Callable[[str], str] = mask or str  # str: as it is
        self._secret = secrets.token_bytes(32)
        self._running: dict[str, Call] = {}  # whose answers somebody may have read to their end already
        self._recent: OrderedDict[str, Answered] = OrderedDict()

    def began(self, call: Call) -> None:
        self._running[call.id] = call
        call.traces = Traces(self._secret)

    def ended(self, call: Call) -> None:
        self._running.pop(call.id, None)
        if _answers(call):
            self._recent[call.id] = _answered(call)
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)

    def keep(
        self, request_id: str, rating: Rating, *, key: Key | None, comment: str = "",
        prompt: str | Sequence[Said] | None = None, answer: str | None = None,
    ) -> Feedback:  # fmt: skip
        """Write it down, in place of what the same key said of the same answer before.

        Raises PermissionError where the key has no such answer.
        """
        owner = _owner(key)
        id = digest([request_id, owner])
        before = self._project.get(KIND, id, Feedback)
        answered = self._answered(request_id)
        if answered is None and before is not None:
            answered = Answered(owner, before.model, before.model_hash, b"")
        if answered is None or answered.owner != owner:
            raise PermissionError(request_id)
        texts = prompt if prompt is None or isinstance(prompt, str) else tuple(prompt)
        masked = self._masked(texts), None if answer is None else self._mask(answer)
        same = self._recognised(answered, texts, answer)
        if not same and before is not None and not before.edited:  # as it was before a restart
            same = masked == (before.prompt, before.answer)
        kept = Feedback(
            id=id, request_id=request_id, rating=rating, comment=self._mask(comment),
            prompt=masked[0], answer=masked[1], edited=not same,
            key=key.name if key else "", model=answered.model, model_hash=answered.hash, at=now(),
        )  # fmt: skip
        self._project.put(KIND, kept)
        if before is None or before.rating != rating:  # a comment is sent with the rating once more
            for tell in self._listeners:
                tell(rating)
        return kept

    def _answered(self, request_id: str) -> Answered | None:
        call = self._running.get(request_id)
        if call is not None and _answers(call):
            return _answered(call)
        return self._recent.get(request_id)

    def _recognised(
        self, answered: Answered, prompt: str | tuple[Said, ...] | None, answer: str | None
    ) -> bool:
        """Whether these texts, as far as there are any, are those of the call."""
        if prompt is None and answer is None:
            return True
        turns = prompt if prompt is None or isinstance(prompt, str) else [(s.role, s.content) for s in prompt]
        return recognised(self._secret, answered.traces, turns, answer)

    def _masked(self, prompt: str | tuple[Said, ...] | None) -> str | tuple[Said, ...] | None:
        if prompt is None:
            return None
        if isinstance(prompt, str):
            return self._mask(prompt)
        return tuple(Said(role=said.role, content=self._mask(said.content)) for said in prompt)


def export(project: Project, rating: Rating = UP, *, edited: bool = False) -> Exported:
    """Answers of that rating as rows for `adapt --task generation`, each pair of prompt and answer once.

    Ratings with other texts than the model was asked and gave are left out, unless `edited`.
    Their columns are prompt and response; messages, where one of the prompts is a chat of several turns.
    """
    rated = [f for f in project.all(KIND, Feedback) if f.rating == rating]
    told = [(_chat(f.prompt), f.answer, f.edited) for f in rated if f.prompt and f.answer]
    known = [(asked, answer) for asked, answer, changed in told if edited or not changed]
    pairs = list(dict.fromkeys(known))
    if all(len(asked) == 1 for asked, _ in pairs):
        rows: list[dict[str, Any]] = [
            {"prompt": asked[0].content, "response": answer} for asked, answer in pairs
        ]
    else:
        rows = [
            {"messages": [s.model_dump() for s in (*asked, Said(role="assistant", content=answer))]}
            for asked, answer in pairs
        ]
    return Exported(rows, len(rated), len(rated) - len(told), len(told) - len(known))


def _owner(key: Key | None) -> str:
    return key.id if key else ""


def _answers(call: Call) -> bool:
    return bool(call.model) and 0 < call.status < 400


def _answered(call: Call) -> Answered:
    traces = call.traces.pairs() if call.traces else b""
    return Answered(_owner(call.key), call.model, call.model_hash, traces)


def _chat(prompt: str | tuple[Said, ...]) -> tuple[Said, ...]:
    return (Said(role="user", content=prompt),) if isinstance(prompt, str) else prompt
