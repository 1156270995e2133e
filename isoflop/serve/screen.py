"""What `isoflop serve` shows at its start: where it is, what its models are worth, lines to paste."""

from __future__ import annotations

import json
import shlex
from typing import Any

from isoflop.quantities import bits
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.protocol import Classifies, Embeds, Hears, Tags, Writes
from isoflop.serve.settings import Settings

KEY = "ISOFLOP_API_KEY"
TEXT = "Once upon a time"


def screen(gateway: Gateway, url: str) -> str:
    """Some lines; those after "curl" and "Python" work when pasted."""
    models = list(gateway.models.values())
    facts = [("url", url), *(("model", worth(model)) for model in models)]
    facts += [(name, said) for name, said in _policy(gateway.settings) if said]
    lines = [f"{name:8} {said}" for name, said in facts]
    return "\n".join([*lines, "", _curl(gateway, models[0], url), "", _python(gateway, models[0], url)])


def worth(model: Model) -> str:
    """A model in a line: its measured quality, its size, what runs it."""
    engine = model.engine
    quality = "bits per byte not measured" if model.bits_per_byte is None else bits(model.bits_per_byte)
    parts = [model.name, quality, f"{model.bytes:,} bytes" if model.bytes else "", f"in {engine.name}",
             f"{engine.slots} at once of {engine.context:,} tokens"]  # fmt: skip
    return ", ".join(part for part in parts if part)


def _policy(settings: Settings) -> list[tuple[str, str]]:
    opened = "none needed, on this machine alone" if settings.open else f"of isoflop keys new NAME, in ${KEY}"
    return [
        ("keys", opened),
        ("masked", ", ".join(settings.mask)),
        ("audit", str(settings.audit or "")),
    ]


def _question(model: Model) -> tuple[str, dict[str, Any], str]:
    """A path, a body, and the same in the official client's words."""
    name = json.dumps(model.name)
    if isinstance(model.engine, Writes) and model.template is not None:
        messages = [{"role": "user", "content": "Hello!"}]
        asked = f"chat.completions.create(model={name}, messages={json.dumps(messages)})"
        return "/v1/chat/completions", {"messages": messages}, f"{asked}.choices[0].message.content"
    if isinstance(model.engine, Writes):
        body = {"prompt": TEXT, "max_tokens": 64}
        asked = f"completions.create(model={name}, prompt={json.dumps(TEXT)}, max_tokens=64)"
        return "/v1/completions", body, f"{asked}.choices[0].text"
    if isinstance(model.engine, Embeds):
        asked = f"embeddings.create(model={name}, input={json.dumps(TEXT)})"
        return "/v1/embeddings", {"input": TEXT}, f"{asked}.data[0].embedding"
    if isinstance(model.engine, Hears):
        asked = f'audio.transcriptions.create(model={name}, file=open("sound.wav", "rb"))'
        return "/v1/audio/transcriptions", {}, f"{asked}.text"
    path = "/v1/classify" if isinstance(model.engine, Classifies) else "/v1/tag"
    assert isinstance(model.engine, Classifies | Tags)
    asked = f'post("{path.removeprefix("/v1")}", body={{"model": {name}, "input": {json.dumps(TEXT)}}}, cast_to=object)'
    return path, {"input": TEXT}, asked
