"""What is kept of a teacher: what it leaves out, and where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from isoflop.errors import TrainError
from isoflop.teaching.topk import Memory, Top, bytes_a_window, left_out

CONTEXT, V, K = 8, 50, 5


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def test_the_likeliest_keep_their_probabilities_and_the_others_share() -> None:
    z = logits(20)
    top = Top.of(z, K)
    p, kept = z.softmax(1), top.logits(V, torch.float32).softmax(1)
    assert torch.equal(top.tokens.long(), p.topk(K).indices)
    chosen = p.gather(1, top.tokens.long())
    assert torch.allclose(kept.gather(1, top.tokens.long()), chosen, rtol=0.02)
    others = kept.scatter(1, top.tokens.long(), 0.0)
    assert torch.allclose(others.amax(1), (1 - chosen.sum(1)) / (V - K), rtol=0.02)
    mass, apart = left_out(z, K)
    assert torch.allclose(mass, 1 - chosen.sum(1), atol=1e-6)
    assert torch.allclose(apart, (p - kept).abs().sum(1))
    assert bool((apart <= 2 * mass + 0.01).all())  # and rounding to 16 bits
    sure = torch.full((1, V), -100.0)
    sure[0, 7] = 100.0
    assert float(left_out(sure, K)[1]) < 1e-6


def memory(folder: Path, windows: int) -> Memory:
    size = windows * bytes_a_window(CONTEXT, K, V)
    return Memory(folder, max_bytes=size, context=CONTEXT, k=K, vocabulary=V)


def test_what_is_read_is_what_was_answered(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(V, (40, CONTEXT), generator=g)
    calls: list[int] = []

    def ask(wanted: torch.Tensor) -> Top:
        """The same of the same window."""
        calls.append(len(wanted))
        answers = [Top.of(logits(CONTEXT, int(row.sum())), K) for row in wanted]
        return Top(*(torch.stack(parts) for parts in zip(*answers, strict=True)))

    truth = ask(ids)
    calls.clear()
    kept = memory(tmp_path, 30)  # fewer places than windows
    for asked in (ids, ids.flip(0)):
        found = kept.recall(asked, ask)
        wanted = truth if asked is ids else Top(truth.tokens.flip(0), truth.logp.flip(0))
        assert torch.equal(found.tokens, wanted.tokens)
        assert torch.equal(found.logp, wanted.logp)
    assert calls[0] == 40
    assert 10 <= calls[1] < 40  # those that found no place
    again = memory(tmp_path, 30)  # another process
    assert torch.equal(again.recall(ids, ask).logp, truth.logp)
    assert calls[2] == calls[1]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 30 * bytes_a_window(CONTEXT, K, V)


def test_no_room_for_one_window_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="do not hold one window of 8 tokens"):
        memory(tmp_path, 0)
