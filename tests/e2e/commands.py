"""What the tests of commands share."""

from __future__ import annotations


class Answer:
    """Exit code and what was printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def refused(answer: Answer, *words: str) -> None:
    """One sentence that holds `words`, a hint, exit 2, no traceback, nothing on stdout."""
    assert answer.code == 2, answer.err
    assert answer.out == ""
    assert "Traceback" not in answer.err
    lines = answer.err.strip().splitlines()
    assert lines[-1].startswith("hint: ")
    assert lines[-2].startswith("error: ")
    for word in words:
        assert word in lines[-2]
