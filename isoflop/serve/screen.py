"""What `isoflop serve` shows at its start: where it is, what its models are worth, two lines to paste."""

from __future__ import annotations

import json
import shlex
from typing import Any

from isoflop.quantities import bits
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.protocol import Classifies, Embeds, Hears, Writes
from isoflop.serve.settings import Settings

KEY = "ISOFLOP_API_KEY"  # variable that holds a client's key
TEXT = "Once upon a time"
SOUND = "sound.wav"


def screen(gateway: Gateway, url: str) -> str:
    """Facts, then a line for a shell with curl, and one for a shell with Python and OpenAI's client."""
    models = list(gateway.models.values())
    facts = [("url", url), *(("model", worth(model)) for model in models), *_policy(gateway)]
    lines = [f"{name:8} {said}" for name, said in facts if said]
    asked = _Asked(models[0])
    return "\n".join([*lines, "", asked.curl(gateway.settings, url), "", asked.python(gateway.settings, url)])


def worth(model: Model) -> str:
    """A model in a line: its measured quality, its size, what runs it."""
    engine = model.engine
    bpb = model.bits_per_byte
    quality = "bits per byte not measured (isoflop verdict)" if bpb is None else bits(bpb)
    size = [] if model.bytes is None else [f"{model.bytes:,} bytes"]
    room = f"{engine.slots} at once, {engine.context:,} tokens each"
    return ", ".join([model.name, quality, *size, engine.name, room])


def _policy(gateway: Gateway) -> list[tuple[str, str]]:
    settings, keys = gateway.settings, "none needed: open to this machine"
    if not settings.open and gateway.keys is not None:
        folder = shlex.quote(str(gateway.keys.project.folder))
        keys = f"isoflop keys new NAME --project {folder}; then in ${KEY}"
    counts = settings.replicas
    scaled = f"{counts.fewest} to {counts.most} of each model, as requests wait" if counts else ""
    return [("keys", keys), ("replicas", scaled), ("masked", ", ".join(settings.mask)),
            ("audit", str(settings.audit or ""))]  # fmt: skip


class _Asked:
    """A question that suits a model: its path, its body, and OpenAI's client's words for it."""

    def __init__(self, model: Model) -> None:
        engine, self.body = model.engine, {"model": model.name}
        said: dict[str, Any] = {"input": TEXT}
        if isinstance(engine, Writes) and model.template is not None:
            said = {"messages": [{"role": "user", "content": "Hello!"}]}
            self.path, self.call = (
                "chat/completions",
                "chat.completions.create({}).choices[0].message.content",
            )
        elif isinstance(engine, Writes):
            said = {"prompt": TEXT, "max_tokens": 64}
            self.path, self.call = "completions", "completions.create({}).choices[0].text"
        elif isinstance(engine, Embeds):
            self.path, self.call = "embeddings", "embeddings.create({}).data[0].embedding"
        elif isinstance(engine, Hears):
            said = {}
            self.path = "audio/transcriptions"
            self.call = f"audio.transcriptions.create({{}}, file=open('{SOUND}', 'rb')).text"
        else:
            self.path = "classify" if isinstance(engine, Classifies) else "tag"
            self.call = f"post('/{self.path}', body=dict({{}}), cast_to=object)['data']"
        self.body |= said

    def curl(self, settings: Settings, url: str) -> str:
        key = "" if settings.open else f' -H "Authorization: Bearer ${KEY}"'
        if self.path.startswith("audio"):
            sent = f"-F file=@{SOUND} -F {shlex.quote('model=' + self.body['model'])}"
        else:
            sent = f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(self.body))}"
        trusted = _trusted(settings, "--cacert ")
        return f"curl -s {trusted}{url}/v1/{self.path}{key} {sent}"

    def python(self, settings: Settings, url: str) -> str:
        key = "'none'" if settings.open else f"os.environ['{KEY}']"
        given = ", ".join(f"{name}={value!r}" for name, value in self.body.items())
        client = f"openai.OpenAI(base_url='{url}/v1', api_key={key})"
        asked = self.call.format(given)
        trusted = _trusted(settings, "SSL_CERT_FILE=")
        return f"{trusted}python -c {shlex.quote(f'import openai, os; print({client}.{asked})')}"


def _trusted(settings: Settings, by: str) -> str:
    """Names the server's certificate, which may be nobody's but its own."""
    if settings.certificate is None:
        return ""
    return f"{by}{shlex.quote(str(settings.certificate))} "
