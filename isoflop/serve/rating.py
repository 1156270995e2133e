"""The route by which feedback comes in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from isoflop.errors import IsoflopError
from isoflop.serve.calls import call_of
from isoflop.serve.feedback import Feedbacks, Rating, Said
from isoflop.serve.protocol import EngineError, RequestError

TEXT = 200_000  # characters of a prompt or an answer, at most


REFUSALS: dict[int | str, dict[str, Any]] = {  # for the documentation
    "4XX": {"description": "The feedback is not understood, or is of another's answer."},
    "5XX": {"description": "The feedback could not be kept; it may be sent again."},
}


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=TEXT)]


class RatingRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"request_id": "req-5f0c2a9e4b7d", "rating": "up", "comment": "Right."}
        },
    )

    request_id: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9._-]{1,100}$", description="Of the answer: its header x-request-id."),
    ]
    rating: Rating
    comment: Annotated[str, Field(max_length=2000)] = ""
    prompt: Annotated[
        Annotated[str, Field(max_length=TEXT)]
        | Annotated[list[Message], Field(min_length=1, max_length=200)]
        | None,
        Field(description="Text or chat that was answered. Kept only if it is sent, as is the answer."),
    ] = None
    answer: Annotated[str, Field(max_length=TEXT)] | None = None


class RatingAnswer(BaseModel):
    id: str
    object: Literal["feedback"] = "feedback"
    request_id: str
    rating: Rating
    edited: Annotated[
        bool,
        Field(description="Prompt or answer are not those of this request; `feedback export` leaves it out."),
    ]


def feedback_router(feedbacks: Feedbacks) -> APIRouter:
    """The route /v1/feedback."""
    router = APIRouter()

    @router.post("/v1/feedback", responses=REFUSALS, tags=["feedback"])
    def feedback(rating: RatingRequest, request: Request) -> RatingAnswer:  # no coroutine: the disk is slow
        """Say whether an answer was good; said again, it replaces what was said before."""
        prompt = rating.prompt
        try:
            kept = feedbacks.keep(
                rating.request_id, rating.rating, key=call_of(request.scope).key,
                comment=rating.comment, answer=rating.answer,
                prompt=prompt if prompt is None or isinstance(prompt, str)
                else [Said(role=said.role, content=said.content) for said in prompt],
            )  # fmt: skip
        except PermissionError:
            message = f"no answer of yours has the id {rating.request_id}"
            raise RequestError(message, status=404, code="answer_not_found", param="request_id") from None
        except IsoflopError as error:  # the ledger is busy, or its disk is full
            raise EngineError("the feedback could not be kept: try again later") from error
        return RatingAnswer(id=kept.id, request_id=kept.request_id, rating=kept.rating, edited=kept.edited)

    return router
