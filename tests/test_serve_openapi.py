"""The documented interface, tried by schemathesis: what the document allows is answered, the rest refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from serving import Echo, Words

from isoflop.serve.app import build_app
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.protocol import Heard
from isoflop.serve.schemas import EXAMPLE
from isoflop.serve.settings import Settings


class Patient(Echo):
    """Takes whatever the document allows."""

    context = 1 << 20

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await super().detokenize([id % 1000 for id in ids])

    async def transcribe(self, sound: bytes, language: str | None) -> Heard:
        return Heard(f"{len(sound)} bytes", 1.0)


ENGINE = Patient()
asyncio.run(ENGINE.start())
APP = build_app(Gateway({EXAMPLE: Model(EXAMPLE, ENGINE)}, Settings(open=True, answers=128), masker=Words))
schema = schemathesis.openapi.from_dict(APP.openapi())
schema.app = APP


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_document_is_true(case: schemathesis.Case[Any]) -> None:
    answer = case.call_and_validate(base_url="http://127.0.0.1", headers={"Host": "127.0.0.1"})
    assert answer.status_code != 403  # the guard has let it in
