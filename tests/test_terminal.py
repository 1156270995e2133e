"""What the terminal shows."""

from __future__ import annotations

import time

import pytest

from isoflop import terminal, verdict_table


def test_a_wide_table_is_not_wider_than_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    cells = ("onnx int8", "2.0463", "+0.0003", "4.60", "1.643*", "259", "1.6e+14", "+1.77", "-1.28", "+0.49",
             "+1.79", "refused")  # fmt: skip
    terminal.table("Wide", verdict_table.HEAD, [cells])
    drawn = capsys.readouterr().out
    assert max(map(len, drawn.splitlines())) <= 100
    assert all(word in drawn for word in (*verdict_table.HEAD, *cells))
    terminal.table(
        path := "p/artifacts/gguf-q8_0-7da56cca21743b4e/model-q8_0.gguf", ("a", "b"), [("one", "two")]
    )
    drawn = capsys.readouterr().out
    assert drawn.startswith(f"{path}\n")
    assert "│ one │ two │" in drawn


def test_without_a_terminal_a_long_stage_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with terminal.Terminal() as progress:
        progress.start("train", 200.0)
        for now[0], done in ((110.0, 10.0), (140.0, 50.0), (150.0, 60.0), (170.0, 100.0)):
            progress.update("train", done, "loss 2.1")
        now[0] = 180.0
        progress.finish("train")
    assert capsys.readouterr().err.splitlines() == [
        "train ...", "train 25% in 40 s, 120 s left   loss 2.1", "train 50% in 70 s, 70 s left   loss 2.1",
        "train done in 80.0 s   ",
    ]  # fmt: skip
