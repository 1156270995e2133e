"""isoflop mask, as it is typed and in a pipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.commands import refused

TEXT = 'joe@example.com said "hi"\n我是13812345678\r\n'


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    file = tmp_path / "letter.txt"
    file.write_bytes(TEXT.encode())
    return file


def test_a_file(isoflop, letter: Path) -> None:  # type: ignore[no-untyped-def]
    answer = isoflop("mask", letter)
    assert (answer.code, answer.out) == (0, '[EMAIL] said "hi"\n我是[PHONE]\r\n')
    assert answer.err == "masked: 1 email, 1 phone\n"
    answer = isoflop("mask", letter, "--kinds", "card, phone", "--reversible")
    assert answer.out == 'joe@example.com said "hi"\n我是[PHONE_1]\r\n'


def test_one_json_document(isoflop, letter: Path) -> None:  # type: ignore[no-untyped-def]
    answer = isoflop("mask", letter, "--json")
    assert json.loads(answer.out) == {
        "text": '[EMAIL] said "hi"\n我是[PHONE]\r\n', "found": {"email": 1, "phone": 1},
    }  # fmt: skip
    document = json.loads(isoflop("mask", letter, "--json", "--reversible").out)
    assert document["values"] == {"[EMAIL_1]": "joe@example.com", "[PHONE_1]": "13812345678"}


def test_what_cannot_be_read(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("mask", tmp_path / "none.txt", "--json"), "none.txt", "No such file")
    refused(isoflop("mask", tmp_path), "cannot be read")
    refused(isoflop("mask", "--kinds", "mail"), "'mail'")
    file = tmp_path / "latin.txt"
    file.write_bytes(b"x" * 100 + "é".encode("latin-1"))
    refused(isoflop("mask", file), "latin.txt is not UTF-8 at byte 100")


def test_a_pipe_is_masked_as_it_is_written() -> None:
    command = [sys.executable, "-m", "isoflop", "mask", "--kinds", "email"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as mask:
        assert mask.stdin is not None
        assert mask.stdout is not None
        assert mask.stderr is not None
        for line in (b"from joe@exam", b"ple.com\nfrom \xe6", b"\x88\x91\n"):
            mask.stdin.write(line)
            mask.stdin.flush()
            if line != b"from joe@exam":
                assert mask.stdout.readline() in (b"from [EMAIL]\n", "from 我\n".encode())
        mask.stdout.close()
        mask.stdin.write(b"nobody reads this\n" * 10)
        mask.stdin.close()
        assert mask.stderr.read() == b""
        assert mask.wait() == 141
