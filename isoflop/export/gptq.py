"""GPTQ: columns of a matrix are rounded in turn, and each error is made up for by the columns still to come.

What counts is the error of the layer's output on text, (w - q) H (w - q)' for a row w with the second
moments H = E[x x'] of its inputs (Frantar et al., arXiv 2210.17323, algorithm 1). Columns are rounded onto
the grids of the format that will hold them: a block has the scale that llama.cpp, or compressed-tensors,
gives what has become of its weights by then. No kept library knows llama.cpp's grids: those that compensate
round to scales of their own, which GGUF cannot hold.

Shapes: r rows, c columns, k the columns of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from isoflop.export.gguf import stored

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

BLOCK = 32
DAMPING = 0.01  # of the mean second moment, added to all (section 3.3)
LEVELS = {  # of a type: its weights are scale * level + minimum
    "q8_0": np.arange(-127, 128), "q5_1": np.arange(32), "q5_0": np.arange(-16, 16),
    "q4_1": np.arange(16), "q4_0": np.arange(-8, 8),
    "iq4_nl": np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]),
}  # fmt: skip
KINDS = tuple(LEVELS)
MINIMA = ("q5_1", "q4_1")  # types that have one


def compensated(
    weight_rc: NDArray[np.float32], kind: str, moments_cc: NDArray[np.float32]
) -> tuple[NDArray[Any], GGMLQuantizationType]:
    """A matrix in one of KINDS as a file holds it, and its type; `stored` where rows are no whole blocks."""
    importance = np.ascontiguousarray(moments_cc.diagonal())
    if weight_rc.shape[1] % BLOCK:
        return stored(weight_rc, kind, importance)
    blocks: list[tuple[NDArray[Any], GGMLQuantizationType]] = []

    def scales(part_rk: torch.Tensor, here: slice) -> tuple[torch.Tensor, torch.Tensor]:
        blocks.append(stored(part_rk.float().numpy(), kind, importance[here]))
        return _scales(blocks[-1][0], kind)

    codes_rc = in_turn(torch.tensor(weight_rc), moments_cc, BLOCK, LEVELS[kind], scales)
    parts = zip(torch.split(codes_rc, BLOCK, dim=1), blocks, strict=True)
    return np.concatenate([_packed(codes, packed, kind) for codes, (packed, _) in parts], 1), blocks[0][1]


def in_turn(
    weight_rc: torch.Tensor, moments_cc: NDArray[np.float32], size: int, levels: NDArray[np.int64],
    scales: Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:  # fmt: skip
    """Numbers (r, c) of the levels that a matrix is rounded to, `size` columns after `size`.

    `scales` is given what has become of a block's weights (r, k), and their columns; it returns what a level
    is multiplied by, and what is added, (r,) each.
    """
    weights, factor_cc = weight_rc.to(torch.float64, copy=True), _factor(moments_cc)
    codes = []
    for start in range(0, weights.shape[1], size):
        here, after = slice(start, start + size), slice(start + size, None)
        part_rk = weights[:, here]
        found_rk, errors_rk = _rounded(part_rk, factor_cc[here, here], levels, *scales(part_rk, here))
        weights[:, after] -= errors_rk @ factor_cc[here, after]
        codes.append(found_rk)
    return torch.cat(codes, dim=1)


def _factor(moments_cc: NDArray[np.float32]) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped second moments."""
    h_cc = torch.tensor(moments_cc, dtype=torch.float64)
    mean = float(h_cc.diagonal().mean()) or 1.0
    h_cc.diagonal().add_(DAMPING * mean)
    inverse_cc = torch.cholesky_inverse(torch.linalg.cholesky(h_cc))
    out: torch.Tensor = torch.linalg.cholesky(inverse_cc, upper=True)
    return out


def _rounded(
    part_rk: torch.Tensor, factor_kk: torch.Tensor, levels: NDArray[np.int64], scale_r: torch.Tensor,
    minimum_r: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Numbers of a block's levels, and what is left to make up for: later columns did for earlier ones."""
    level = torch.tensor(levels, dtype=torch.float64)
    between = (level[1:] + level[:-1]) / 2
    codes, errors = torch.empty_like(part_rk, dtype=torch.int64), torch.empty_like(part_rk)
    inverse_r = torch.where(scale_r == 0, 0.0, 1 / scale_r)
    for k in range(part_rk.shape[1]):
        w_r = part_rk[:, k]
        codes[:, k] = torch.searchsorted(between, ((w_r - minimum_r) * inverse_r).contiguous())
        q_r = scale_r * level[codes[:, k]] + minimum_r
        errors[:, k] = (w_r - q_r) / factor_kk[k, k]
        part_rk[:, k + 1 :] -= torch.outer(errors[:, k], factor_kk[k, k + 1 :])
    return codes, errors


def _scales(packed: NDArray[np.uint8], kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum (r,) of rows of one block."""
    halves = packed[:, :4].copy().view(np.float16).astype(np.float64)
    scale, minimum = torch.tensor(halves).unbind(1)
    return scale, minimum if kind in MINIMA else torch.zeros_like(minimum)


def _packed(codes_rk: torch.Tensor, packed: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Rows of one block with other levels: after the scales fifth bits, then halves of bytes, or bytes."""
    codes = codes_rk.numpy().astype(np.uint8)
    head = packed[:, : 4 if kind in MINIMA else 2]
    if kind == "q8_0":
        return np.concatenate(
            (head, (codes.astype(np.int16) + LEVELS[kind][0]).astype(np.int8).view(np.uint8)), 1
        )
    low = codes & 15
    parts = [head, low[:, : BLOCK // 2] | (low[:, BLOCK // 2 :] << 4)]
    if len(LEVELS[kind]) > 16:
        parts.insert(1, np.packbits(codes >> 4, axis=1, bitorder="little"))
    return np.concatenate(parts, axis=1)
