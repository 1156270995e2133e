"""Ways to divide a training step among devices: one as a record, many as arrays of equal length n."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from isoflop.records import Record

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RECOMPUTE = ("none", "selective", "full")  # what the backward pass computes again
NONE, SELECTIVE, FULL = range(3)


class Layout(Record):
    """Degrees of parallelism; data x tensor x pipeline x context is the number of devices.

    Experts are shared out within `data` x `context`. `zero`: 0 keeps weights, gradients and optimizer states
    whole in every data-parallel copy, 1 shards the states, 2 the gradients too, 3 (FSDP) the weights too.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    micro: int = 1  # sequences a micro-batch
    micro_batches: int = 1  # a step and data-parallel copy
    interleave: int = 1  # model chunks a pipeline stage
    zero: int = 1
    recompute: str = "selective"  # attention's core and the gated product, as FlashAttention does; none; full
    sequence: bool = True  # norms and dropouts divided among the tensor-parallel devices too

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def sequences(self) -> int:
        """Of a step."""
        return self.data * self.micro * self.micro_batches

    @property
    def words(self) -> str:
        degrees = {"dp": self.data, "tp": self.tensor, "pp": self.pipeline, "cp": self.context,
                   "ep": self.expert}  # fmt: skip
        parts = [f"{name}{n}" for name, n in degrees.items() if n > 1] or ["one device"]
        if self.interleave > 1:
            parts.append(f"v{self.interleave}")
        return f"{' '.join(parts)}, micro-batch {self.micro}, ZeRO-{self.zero}, recompute {self.recompute}"


class Practice(Record):
    """How the step is programmed, whatever the layout."""

    precision: str = "bf16"  # of linear layers: bf16 or fp8; the rest is in 16 bits
    flash: bool = True  # attention without writing its scores to memory

    @property
    def linear_bytes(self) -> int:
        """In which an input of a linear layer is kept and sent."""
        return 1 if self.precision == "fp8" else 2


MODERN = Practice()


@dataclass(frozen=True)
class Layouts:
    """(n,) arrays; the fields are those of `Layout`, `recompute` as an index into `RECOMPUTE`."""

    data: Ints
    tensor: Ints
    pipeline: Ints
    context: Ints
    expert: Ints
    micro: Ints
    micro_batches: Ints
    interleave: Ints
    zero: Ints
    recompute: Ints
    sequence: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.data)

    @property
    def devices(self) -> Ints:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def sequences(self) -> Ints:
        """Of a step."""
        return self.data * self.micro * self.micro_batches

    @classmethod
    def of(cls, *layouts: Layout) -> Layouts:
        columns = {f.name: np.array([getattr(one, f.name) for one in layouts]) for f in fields(cls)}
        columns["recompute"] = np.array([RECOMPUTE.index(one.recompute) for one in layouts])
        return cls(**columns)

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Layouts:
        return Layouts(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def one(self, i: int) -> Layout:
        values = {f.name: getattr(self, f.name)[i].item() for f in fields(self)}
        return Layout(**{**values, "recompute": RECOMPUTE[values["recompute"]]})
