"""What the terminal shows."""

from __future__ import annotations

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
