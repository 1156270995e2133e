"""Ratings of answers: over HTTP into the ledger, and out of it as data to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import CHAT, COMPLETIONS, Asked
from called import KEY, answer, conversed, made
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from serving import Words

from isoflop.serve.calls import Call
from isoflop.serve.feedback import KIND, Feedback, Feedbacks, Said, export
from isoflop.serve.keys import Key
from isoflop.serve.protocol import EngineError, RequestError
from isoflop.serve.rating import feedback_router
from isoflop.store import Project

ASKED = {"prompt": "Why?", "answer": "Because."}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "home")


def app_of(feedbacks: Feedbacks, key: Key | None) -> FastAPI:
    """With the key that a guard would have found, and errors by their status."""
    app = FastAPI()
    app.include_router(feedback_router(feedbacks))

    @app.middleware("http")
    async def guard(request: Request, answer: Any) -> Any:
        request.state.call = Call(request.url.path, key=key)
        return await answer(request)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.message, status_code=error.status)

    @app.exception_handler(EngineError)
    async def failed(request: Request, error: EngineError) -> JSONResponse:
        return JSONResponse(str(error), status_code=503)

    return app


@pytest.fixture
def feedbacks(project: Project) -> Feedbacks:
    return Feedbacks(project)


@pytest.fixture
def client(feedbacks: Feedbacks) -> Iterator[TestClient]:
    with TestClient(app_of(feedbacks, KEY)) as found:
        yield found


def rated(client: TestClient, request_id: str, rating: str = "up", **more: Any) -> Any:
    return client.post("/v1/feedback", json={"request_id": request_id, "rating": rating, **more})


def test_a_rating_is_kept_with_the_model_that_answered(
    client: TestClient, feedbacks: Feedbacks, project: Project
) -> None:
    call = made()
    feedbacks.ended(call)
    told = rated(client, call.id, "down", comment="no", **ASKED)
    assert told.status_code == 200, told.text
    (kept,) = project.all(KIND, Feedback)
    assert (kept.rating, kept.comment, kept.prompt, kept.answer) == ("down", "no", "Why?", "Because.")
    assert (kept.key, kept.model, kept.model_hash) == (KEY.name, "tiny", "abc")
    assert told.json() == {
        "id": kept.id, "object": "feedback", "request_id": call.id, "rating": "down", "edited": True,
    }  # fmt: skip


def test_said_again_it_replaces_what_was_said(
    client: TestClient, feedbacks: Feedbacks, project: Project
) -> None:
    answer(feedbacks, "req-1", "req-2", key=KEY)
    rated(client, "req-1", "up")
    rated(client, "req-1", "down")
    rated(client, "req-2", "up")
    assert [(f.request_id, f.rating) for f in project.all(KIND, Feedback)] == [
        ("req-1", "down"), ("req-2", "up"),
    ]  # fmt: skip
    assert all(f.prompt is None for f in project.all(KIND, Feedback))


def test_what_nobody_answered_cannot_be_rated(
    client: TestClient, feedbacks: Feedbacks, project: Project
) -> None:
    answer(feedbacks, "open")
    feedbacks.ended(made(id="failed", status=503))
    feedbacks.ended(made(id="page", model=""))
    feedbacks.began(made(id="waits", status=0))
    for id in ("invented", "open", "failed", "page", "waits"):
        told = rated(client, id, **ASKED)
        assert (told.status_code, id in told.text) == (404, True)
    assert project.all(KIND, Feedback) == []


def test_an_answer_whose_call_has_yet_to_end_can_be_rated(client: TestClient, feedbacks: Feedbacks) -> None:
    call = made()
    feedbacks.began(call)
    assert rated(client, call.id).status_code == 200
    feedbacks.ended(call)
    assert rated(client, call.id, "down").status_code == 200


def test_after_a_restart_only_what_was_rated_can_be_rated_again(
    client: TestClient, feedbacks: Feedbacks, project: Project
) -> None:
    answer(feedbacks, "req-1", "req-2", key=KEY)
    rated(client, "req-1", "up")
    with TestClient(app_of(Feedbacks(project), KEY)) as restarted:
        assert rated(restarted, "req-1", "down").status_code == 200
        assert rated(restarted, "req-2").status_code == 404
    (kept,) = project.all(KIND, Feedback)
    assert (kept.rating, kept.model, kept.model_hash) == ("down", "tiny", "abc")


def test_anothers_answer_cannot_be_rated(feedbacks: Feedbacks, project: Project) -> None:
    call = made()
    feedbacks.ended(call)
    with TestClient(app_of(feedbacks, Key(id="k2", name="eve", salt="", hash=""))) as eve:
        told = rated(eve, call.id)
    assert told.status_code == 404
    assert project.all(KIND, Feedback) == []


@pytest.mark.parametrize(
    "body",
    [
        {"rating": "up"}, {"request_id": "r", "rating": "fine"}, {"request_id": "a b", "rating": "up"},
        {"request_id": "r", "rating": "up", "stars": 5}, {"request_id": "r", "rating": "up", "prompt": []},
        {"request_id": "r", "rating": "up", "comment": "x" * 2001},
        {"request_id": "r", "rating": "up", "prompt": [{"role": "judge", "content": "x"}]},
        {"request_id": "r", "rating": "up", "answer": "x" * 200_001},
    ],
)  # fmt: skip
def test_what_is_no_rating_is_refused(client: TestClient, project: Project, body: dict[str, Any]) -> None:
    assert client.post("/v1/feedback", json=body).status_code == 422
    assert project.all(KIND, Feedback) == []


def test_a_comment_that_follows_is_no_second_rating(project: Project) -> None:
    heard: list[str] = []
    feedbacks = Feedbacks(project, listeners=[heard.append])
    answer(feedbacks, "r")
    feedbacks.keep("r", "up", key=None)
    feedbacks.keep("r", "up", key=None, comment="indeed")
    assert heard == ["up"]
    feedbacks.keep("r", "down", key=None)
    assert heard == ["up", "down"]


def test_texts_are_masked_before_they_are_kept(project: Project) -> None:
    def mask(text: str) -> str:
        if "boom" in text:
            raise ValueError("the masker failed")
        return text.replace("a@b.org", "[EMAIL]")

    heard: list[str] = []
    feedbacks = Feedbacks(project, mask=mask, listeners=[heard.append])
    answer(feedbacks, "r", "r2")
    chat = [Said(role="user", content="I am a@b.org")]
    kept = feedbacks.keep("r", "up", key=None, comment="ask a@b.org", prompt=chat, answer="Hi a@b.org")
    assert "a@b.org" not in kept.to_json()
    assert kept.to_json().count("[EMAIL]") == 3
    with pytest.raises(ValueError, match="masker"):
        feedbacks.keep("r2", "up", key=None, prompt="boom")
    assert len(project.all(KIND, Feedback)) == 1
    assert heard == ["up"]


def test_a_ledger_that_cannot_be_written_asks_to_try_again(
    client: TestClient, feedbacks: Feedbacks, project: Project
) -> None:
    answer(feedbacks, "req-1", key=KEY)
    (project.folder / "ledger.db").unlink()
    (project.folder / "ledger.db").mkdir()
    told = rated(client, "req-1")
    assert told.status_code == 503
    assert "could not be kept" in told.text


def test_accepted_answers_become_prompts_and_responses(feedbacks: Feedbacks, project: Project) -> None:
    answer(feedbacks, "bare")
    conversed(feedbacks, "again", "p0", "a0")
    for number, rating in enumerate(("up", "up", "down", "up")):
        conversed(feedbacks, f"r{number}", f"p{number}", f"a{number}")
        feedbacks.keep(f"r{number}", rating, key=None, prompt=f"p{number}", answer=f"a{number}")  # type: ignore[arg-type]
    feedbacks.keep("again", "up", key=None, prompt="p0", answer="a0")
    feedbacks.keep("bare", "up", key=None)
    found = export(project)
    assert found.rows == [{"prompt": f"p{n}", "response": f"a{n}"} for n in (0, 1, 3)]
    assert (found.ratings, found.without, found.edited) == (5, 1, 0)
    assert export(project, "down").rows == [{"prompt": "p2", "response": "a2"}]


def test_a_chat_of_several_turns_makes_them_all_messages(feedbacks: Feedbacks, project: Project) -> None:
    turns = [Said(role=role, content=role) for role in ("user", "assistant", "user")]
    conversed(feedbacks, "r1", "alone", "one")
    conversed(feedbacks, "r2", [(said.role, said.content) for said in turns], "two")
    feedbacks.keep("r1", "up", key=None, prompt="alone", answer="one")
    feedbacks.keep("r2", "up", key=None, prompt=turns, answer="two")
    first, second = (row["messages"] for row in export(project).rows)
    assert first == [{"role": "user", "content": "alone"}, {"role": "assistant", "content": "one"}]
    assert [said["content"] for said in second] == ["user", "assistant", "user", "two"]


def test_texts_that_nobody_was_answered_are_kept_apart(feedbacks: Feedbacks, project: Project) -> None:
    chat = [("system", "Be brief."), ("user", "Why?")]
    conversed(feedbacks, "r", chat, "Because.", "So.")
    asked = [Said(role=role, content=content) for role, content in chat]
    other = [Said(role="system", content="Be rude."), asked[1]]
    for prompt, said, edited in (
        (asked, "So.", False), (asked, "Because.", False), (asked, None, False), (None, "So.", False),
        (asked, "Thus.", True), (other, "So.", True), ("Why?", "So.", True), (asked, "", True),
    ):  # fmt: skip
        kept = feedbacks.keep("r", "up", key=None, prompt=prompt, answer=said)
        assert (kept.edited, kept.answer) == (edited, said)
    feedbacks.keep("r", "up", key=None, prompt=asked, answer="Thus.")
    found = export(project)
    assert (found.rows, found.ratings, found.without, found.edited) == ([], 1, 0, 1)
    (row,) = export(project, edited=True).rows
    assert row["messages"][-1] == {"role": "assistant", "content": "Thus."}


def test_after_a_restart_texts_are_compared_with_those_that_were_kept(
    feedbacks: Feedbacks, project: Project
) -> None:
    conversed(feedbacks, "r", "p", "a")
    feedbacks.keep("r", "up", key=None, prompt="p", answer="a")
    restarted = Feedbacks(project)
    assert not restarted.keep("r", "down", key=None, prompt="p", answer="a").edited
    assert restarted.keep("r", "down", key=None, prompt="p", answer="b").edited
    assert restarted.keep("r", "down", key=None, prompt="p", answer="a").edited  # it is known no more


def test_old_ratings_were_compared_by_nobody() -> None:
    old = {"id": "i", "request_id": "r", "rating": "up", "prompt": "p", "answer": "a", "at": "2026-01-01"}
    assert Feedback.model_validate(old).edited


CONVERSATIONS: list[tuple[str, dict[str, Any], Any, list[str]]] = [
    (COMPLETIONS, {"prompt": "a b"}, "a b", ["a b"]),
    (COMPLETIONS, {"prompt": ["a b", "c"], "n": 2}, "c", ["c"]),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "é ok"}]}]}, "é ok",
     ["User: é ok Assistant:"]),
    (CHAT, {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}], "n": 2},
     [Said(role="system", content="x"), Said(role="user", content="y")],
     ["System: x User: y Assistant:"]),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "document", "prompt", "answers"), CONVERSATIONS)
def test_the_gateways_answers_are_recognised(
    project: Project, path: str, document: dict[str, Any], prompt: Any, answers: list[str], stream: bool
) -> None:
    asked = Asked()
    feedbacks = Feedbacks(project)
    asked.gateway.observers = [asked.witness, feedbacks]
    assert asked(path, {"model": "my-model", "stream": stream} | document).status_code == 200
    for said in answers:
        kept = feedbacks.keep(asked.call.id, "up", key=None, prompt=prompt, answer=said)
        assert not kept.edited
        assert feedbacks.keep(asked.call.id, "up", key=None, prompt=prompt, answer=said + ".").edited
    assert feedbacks.keep(asked.call.id, "up", key=None, prompt="a b c", answer=answers[0]).edited


def test_what_was_masked_is_recognised_as_the_client_saw_it(project: Project) -> None:
    asked = Asked(masker=Words, settings={"mask": ("bob",)})
    feedbacks = Feedbacks(project)
    asked.gateway.observers = [asked.witness, feedbacks]
    asked(COMPLETIONS, {"model": "my-model", "prompt": "hi bob"})
    assert not feedbacks.keep(asked.call.id, "up", key=None, prompt="hi bob", answer="hi [BOB]").edited
    assert feedbacks.keep(asked.call.id, "up", key=None, prompt="hi bob", answer="hi bob").edited
    asked("/v1/audio/transcriptions", files={"file": ("a.wav", b"abc")}, data={"model": "my-model"})
    assert not feedbacks.keep(asked.call.id, "up", key=None, answer="3 bytes").edited
