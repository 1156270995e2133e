"""Export and eval, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.commands import refused
from isoflop.engines.speed import QUIET
from isoflop.records import Result

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")


def test_a_model_is_exported_and_scored_in_its_engine(project: tuple[Path, Result], isoflop) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    # Tokens that no other test of the shared project calibrates by: what is there is not written again.
    typed = ("export", result.model, "--type", "q5_1", "--calibrate", 3072, "--project", folder)
    answer = isoflop(*typed)
    assert answer.code == 0
    assert "held-out lines with the same tokens" in answer.out
    assert "export done" in answer.err
    file = answer.out.split()[-1]
    assert Path(file).name == "model-q5_1.gguf"
    scored = isoflop("eval", file, "--tokens", 4096, "--speed", "--json", "--project", folder)
    found = json.loads(scored.out)
    assert found["speed"]["engine"] == "llama.cpp"
    assert found["speed"]["quiet"] == (found["speed"]["others"] <= QUIET)
    assert found["loss"] == pytest.approx(result.loss, rel=0.1)
    shown = isoflop("eval", file, "--tokens", 4096, "--speed", "--project", folder)
    assert "new text, tokens/s" in shown.out
    done = json.loads(isoflop(*typed, "--json").out)
    assert file.endswith(done["path"])


def test_a_model_is_trained_for_four_bits(project: tuple[Path, Result], isoflop) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    typed = ("quantize", result.model, "--train", "20k", "--eval-tokens", 4096, "--project", folder)
    answer = isoflop(*typed)
    assert answer.code == 0
    assert "gguf, q4_0, trained for it" in answer.out
    assert "loss without training" in answer.out
    assert Path(answer.out.split()[-1]).name == "model-q4_0.gguf"
    made = json.loads(isoflop(*typed, "--json").out)["transform"]
    assert made["after"]["loss"] < made["measured"]["loss without training"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("export", "MODEL", "--type", "q9"), "no type 'q9'"),
        (("export", "MODEL", "--to", "x"), "no format 'x'"),
        (("export", "/none"), "/none has no config.json"),
        (("export", "MODEL", "--calibrate", 512), "f32 rounds no weights by text"),
        (("export", "MODEL", "--calibrate", 512, "--type", "f16"), "f16 rounds no weights by text"),
        (("export", "MODEL", "--calibrate", 512, "--to", "hf"), "f32 rounds no weights by text"),
        (("export", "MODEL", "--rounding", "awq", "--type", "q4_0"), "no rounding 'awq'"),
        (("export", "MODEL", "--rounding", "gptq", "--type", "q6_k"), "q6_k knows no rounding gptq"),
        (("quantize", "MODEL", "--train", "20k", "--max-bytes", "1MB"), "not rounded by limits"),
        (("quantize", "MODEL", "--train", "20k", "--type", "q6_k"), "no run is trained for weights"),
        (("quantize", "MODEL", "--type", "q4_0", "--max-bytes", "1MB"), "--type q4_0 is for --train"),
        (("eval", "/none.gguf"), "there is no artifact /none.gguf"),
    ],
)
def test_what_cannot_be_is_told(project: tuple[Path, Result], isoflop, words, told) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    typed = [result.model if word == "MODEL" else word for word in words]
    refused(isoflop(*typed, "--project", folder), told)
