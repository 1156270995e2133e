"""/v1/audio/transcriptions: what is said in a sound."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Literal

from fastapi import APIRouter, Form, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from isoflop.serve.answering import Answering, answered
from isoflop.serve.calls import Call
from isoflop.serve.gateway import Model
from isoflop.serve.masked import masked, masker_of
from isoflop.serve.protocol import Heard, Hears
from isoflop.serve.replies import Transcription, VerboseTranscription
from isoflop.serve.routes import answered_by, documented, held
from isoflop.serve.schemas import EXAMPLE

TOKENS_A_SECOND = 50  # that Whisper's encoder makes of a sound, so an hour costs 180,000 of a key
GUESSED_BYTES = 320  # of a file, for one of them: an MP3 of 128 kbit a second

router = APIRouter(tags=["sound"])


class TranscriptionRequest(BaseModel):
    """A form, whose values are all texts."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    model: str = Field(min_length=1, examples=[EXAMPLE])
    language: str | None = Field(None, description="ISO 639-1; heard from the sound when absent.")
    response_format: Literal["json", "text", "verbose_json"] = "json"
    temperature: float = Field(0.0, ge=0, le=0, description="0 alone.")
    mask: str = Field("", description="Kinds of personal data that are masked, with commas between.")


ANSWERS = documented(Transcription | VerboseTranscription)
ANSWERS[200]["content"] = {"text/plain": {"schema": {"type": "string"}}}


@router.post("/v1/audio/transcriptions", response_model=None, responses=ANSWERS)
async def transcribe(
    asked: Annotated[TranscriptionRequest, Form(media_type="multipart/form-data")], request: Request
) -> Answering:
    """The text of a sound file."""
    gateway, _ = held(request)
    sound = await asked.file.read()

    def answer(call: Call, model: Model, engine: Hears) -> Answering:
        masker = masker_of(gateway, [kind.strip() for kind in asked.mask.split(",") if kind.strip()])

        async def made() -> Response:
            try:
                heard: Heard = await engine.transcribe(sound, asked.language or None)
            except asyncio.CancelledError:  # the client left, or time is up: nobody has said how long it is
                call.prompt_tokens = math.ceil(len(sound) / GUESSED_BYTES)
                raise
            call.prompt_tokens = math.ceil(heard.seconds * TOKENS_A_SECOND)
            text = await masked(call, masker, heard.text)
            if call.traces:
                call.traces.said(0, text)
            if gateway.settings.audit_text or call.compared:
                call.answered[0] = text
            if asked.response_format == "text":
                return PlainTextResponse(text)
            if asked.response_format == "json":
                return JSONResponse({"text": text, "usage": _usage(call.prompt_tokens)})
            return JSONResponse(
                {"task": "transcribe", "language": asked.language, "duration": heard.seconds, "text": text}
            )

        return answered(call, gateway.settings.seconds, made)

    return answered_by(request, asked.model, Hears, answer)


def _usage(tokens: int) -> dict[str, str | int]:
    """What the sound costs, as OpenAI says it; its transcript costs nothing more."""
    return {"type": "tokens", "input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
