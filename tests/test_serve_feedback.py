"""Ratings of answers: over HTTP into the ledger, and out of it as data to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from called import KEY, made
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

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
    answer = rated(client, call.id, "down", comment="no", **ASKED)
    assert answer.status_code == 200, answer.text
    (kept,) = project.all(KIND, Feedback)
    assert (kept.rating, kept.comment, kept.prompt, kept.answer) == ("down", "no", "Why?", "Because.")
    assert (kept.key, kept.model, kept.model_hash) == (KEY.name, "tiny", "abc")
    assert answer.json() == {
        "id": kept.id, "object": "feedback", "request_id": call.id, "rating": "down",
    }  # fmt: skip


def test_said_again_it_replaces_what_was_said(client: TestClient, project: Project) -> None:
    rated(client, "req-1", "up")
    rated(client, "req-1", "down")
    rated(client, "req-2", "up")
    assert [(f.request_id, f.rating) for f in project.all(KIND, Feedback)] == [
        ("req-1", "down"), ("req-2", "up"),
    ]  # fmt: skip
    assert all(f.prompt is None and f.model == "" for f in project.all(KIND, Feedback))


def test_anothers_answer_cannot_be_rated(feedbacks: Feedbacks, project: Project) -> None:
    call = made()
    feedbacks.ended(call)
    with TestClient(app_of(feedbacks, Key(id="k2", name="eve", salt="", hash=""))) as eve:
        answer = rated(eve, call.id)
    assert answer.status_code == 404
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
    chat = [Said(role="user", content="I am a@b.org")]
    kept = feedbacks.keep("r", "up", key=None, comment="ask a@b.org", prompt=chat, answer="Hi a@b.org")
    assert "a@b.org" not in kept.to_json()
    assert kept.to_json().count("[EMAIL]") == 3
    with pytest.raises(ValueError, match="masker"):
        feedbacks.keep("r2", "up", key=None, prompt="boom")
    assert len(project.all(KIND, Feedback)) == 1
    assert heard == ["up"]


def test_a_ledger_that_cannot_be_written_asks_to_try_again(client: TestClient, project: Project) -> None:
    (project.folder / "ledger.db").unlink()
    (project.folder / "ledger.db").mkdir()
    answer = rated(client, "req-1")
    assert answer.status_code == 503
    assert "could not be kept" in answer.text


def test_accepted_answers_become_prompts_and_responses(feedbacks: Feedbacks, project: Project) -> None:
    for number, rating in enumerate(("up", "up", "down", "up")):
        feedbacks.keep(f"r{number}", rating, key=None, prompt=f"p{number}", answer=f"a{number}")  # type: ignore[arg-type]
    feedbacks.keep("again", "up", key=None, prompt="p0", answer="a0")
    feedbacks.keep("bare", "up", key=None)
    found = export(project)
    assert found.rows == [{"prompt": f"p{n}", "response": f"a{n}"} for n in (0, 1, 3)]
    assert (found.ratings, found.without) == (5, 1)
    assert export(project, "down").rows == [{"prompt": "p2", "response": "a2"}]


def test_a_chat_of_several_turns_makes_them_all_messages(feedbacks: Feedbacks, project: Project) -> None:
    turns = [Said(role=role, content=role) for role in ("user", "assistant", "user")]
    feedbacks.keep("r1", "up", key=None, prompt="alone", answer="one")
    feedbacks.keep("r2", "up", key=None, prompt=turns, answer="two")
    first, second = (row["messages"] for row in export(project).rows)
    assert first == [{"role": "user", "content": "alone"}, {"role": "assistant", "content": "one"}]
    assert [said["content"] for said in second] == ["user", "assistant", "user", "two"]
