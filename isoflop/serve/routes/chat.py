"""/v1/chat/completions: the model's turn in a chat."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request

from isoflop.serve.answering import Answering
from isoflop.serve.chats import PLAIN_STOP, Template, plain
from isoflop.serve.forms import ChatForm
from isoflop.serve.protocol import Writes
from isoflop.serve.replies import ChatCompletion
from isoflop.serve.routes import documented
from isoflop.serve.routes.asking import Asking, Prompt, asked_of_model
from isoflop.serve.schemas import ChatRequest, Message
from isoflop.serve.traces import Turn

router = APIRouter(tags=["text"])
EVENTS = "A chat.completion.chunk with some more of the answer, in JSON; the last is [DONE]."


@router.post("/v1/chat/completions", response_model=None, responses=documented(ChatCompletion, EVENTS))
async def chat(asked: ChatRequest, request: Request) -> Answering:
    """Answer the last message of a chat."""
    turns = [_turn(message) for message in asked.messages]
    logprobs = asked.top_logprobs or 0 if asked.logprobs or asked.top_logprobs else None

    def answer(answering: Asking) -> Answering:
        template = answering.model.template
        answering.trace([turns])

        async def prompts() -> list[Prompt]:
            names = [m.name if m.name is None else await answering.masked(m.name) for m in asked.messages]
            said = await answering.masked_turns(turns)
            messages = [_plain(*each) for each in zip(said, names, strict=True)]
            if template is None:
                return [plain(messages)]
            return [await _rendered(template, messages, answering.engine)]

        return answering.answer(
            prompts, ChatForm, texts=1, most=asked.max_completion_tokens or asked.max_tokens,
            logprobs=logprobs, stop=(PLAIN_STOP,) if template is None else (), param="messages",
        )  # fmt: skip

    return asked_of_model(request, asked, answer)


def _plain(said: Turn, name: str | None) -> dict[str, str]:
    """A message as templates know it: who, and one text."""
    role, text = said
    return {"role": role, "content": text, **({} if name is None else {"name": name})}


def _turn(message: Message) -> Turn:
    """Who says it, and all of its text."""
    said = message.content
    text = said if isinstance(said, str) else "".join(part.text for part in said)
    return "system" if message.role == "developer" else message.role, text


async def _rendered(template: Template, messages: list[dict[str, str]], engine: Writes) -> Prompt:
    """The chat's text; as ids where the template has written the first token, which engines add to texts."""
    text = template.render(messages)
    if template.begin and text.startswith(template.begin):
        return tuple(await engine.tokenize(text, special=True))
    return text
