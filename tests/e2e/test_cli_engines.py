"""Export and eval, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.commands import refused
from isoflop.engines.speed import QUIET_LOAD
from isoflop.records import Result

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")


def test_a_model_is_exported_and_scored_in_its_engine(project: tuple[Path, Result], isoflop) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    answer = isoflop("export", result.model, "--type", "q8_0", "--project", folder)
    assert answer.code == 0
    assert "held-out lines with the same tokens" in answer.out
    file = answer.out.split()[-1]
    assert Path(file).name == "model-q8_0.gguf"
    scored = isoflop("eval", file, "--tokens", 4096, "--speed", "--json", "--project", folder)
    found = json.loads(scored.out)
    assert found["speed"]["engine"] == "llama.cpp"
    assert found["speed"]["quiet"] == (found["speed"]["load_before"] <= QUIET_LOAD)
    assert found["loss"] == pytest.approx(result.loss, rel=0.1)
    shown = isoflop("eval", file, "--tokens", 4096, "--speed", "--project", folder)
    assert "new text, tokens/s" in shown.out
    done = json.loads(isoflop("export", result.model, "--type", "q8_0", "--project", folder, "--json").out)
    assert file.endswith(done["path"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("export", "MODEL", "--type", "q9"), "no type 'q9'"),
        (("export", "MODEL", "--to", "x"), "no format 'x'"),
        (("export", "/none"), "/none has no config.json"),
        (("export", "MODEL", "--calibrate", 512), "f32 rounds no weights by text"),
        (("export", "MODEL", "--calibrate", 512, "--type", "f16"), "f16 rounds no weights by text"),
        (("export", "MODEL", "--calibrate", 512, "--to", "hf"), "f32 rounds no weights by text"),
        (("eval", "/none.gguf"), "neither a model folder nor"),
    ],
)
def test_what_cannot_be_is_told(project: tuple[Path, Result], isoflop, words, told) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    typed = [result.model if word == "MODEL" else word for word in words]
    refused(isoflop(*typed, "--project", folder), told)
