"""Accelerators by name, and clusters of them.

Bandwidths are per device and direction, in bytes a second; rates are dense (no sparsity), in FLOP/s.
"""

from __future__ import annotations

import csv
import difflib
import re
from datetime import date
from functools import cache
from importlib.resources import files

from isoflop.errors import LayoutError
from isoflop.records import Record

INTERNODE = 12.5e9  # a 100 Gb/s adapter a device, where the generation is not known to have another
INTRANODE = 16e9  # PCIe 3.0 x16
HOST_SHARE = 0.5  # power of processors, memory, network and fans, a share of the accelerators' own (assumed)
PUE = 1.2  # power of the whole site over that of its machines (assumed)
GRID_KG_PER_KWH = 0.473  # CO2 of the world's electricity in 2024: Ember, Global Electricity Review 2025
PRECISIONS = ("bf16", "fp16", "fp8", "fp32")
RACK = 72  # devices that NVIDIA's racks join
CLUSTER = re.compile(r"\s*([0-9][0-9_,]*)\s*[xX×]\s*(\S.*?)\s*")


class Accelerator(Record):
    """One row of the table; None where it is not known."""

    name: str
    aliases: tuple[str, ...]
    manufacturer: str
    generation: str
    release: date
    fp64_flops: float | None
    fp32_flops: float | None  # vector units
    tf32_flops: float | None
    fp16_flops: float | None
    bf16_flops: float | None
    fp8_flops: float | None
    fp4_flops: float | None
    int8_ops: float | None
    memory_bytes: float | None
    bandwidth_bytes: float | None
    intranode_bytes: float | None  # to the other devices of its node
    internode_bytes: float | None  # usual in its generation
    node_devices: int | None  # that its fast links reach
    tdp_w: float | None
    launch_price_usd: float | None
    rental_usd_per_hour: float | None
    rental_date: str | None  # year and month of that price
    announced: bool  # not released when the table was written
    confidence: str
    source: str

    @property
    def half(self) -> str:
        """The 16-bit format it trains in."""
        return "bf16" if self.bf16_flops else "fp16"

    @property
    def half_flops(self) -> float | None:
        return self.bf16_flops or self.fp16_flops


@cache
def accelerators() -> tuple[Accelerator, ...]:
    """The package's table, the earliest first."""
    text = (files("isoflop.trend") / "data/accelerators.csv").read_text()
    return tuple(_accelerator(row) for row in csv.DictReader(text.splitlines()))


def _accelerator(row: dict[str, str]) -> Accelerator:
    given: dict[str, object] = {name: value or None for name, value in row.items()}
    given["aliases"] = tuple(filter(None, row["aliases"].split("|")))
    return Accelerator.model_validate({**given, "announced": row["announced"] == "yes"})


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def accelerator(name: str) -> Accelerator:
    """By name or alias, spaces and case aside. Raises LayoutError that tells the nearest names."""
    known = {_key(word): row for row in accelerators() for word in (row.name, *row.aliases)}
    found = known.get(_key(name))
    if found is not None:
        return found
    words = [word for row in accelerators() for word in (*row.aliases, row.name)]
    near = difflib.get_close_matches(_key(name), map(_key, words), n=4, cutoff=0.4)
    names = list(dict.fromkeys(word for key in near for word in words if _key(word) == key))
    raise LayoutError(
        f"There is no accelerator named {name!r}.",
        hint=f"The nearest names are: {', '.join(names)}."
        if names
        else "Write e.g. H100, A100, MI300X or TPU v5p.",
    )


class Cluster(Record):
    """`devices` accelerators in nodes of `node_devices`."""

    devices: int
    accelerator: Accelerator
    node_devices: int
    intranode_bytes: float
    internode_bytes: float
    usd_per_hour: float | None  # a device-hour
    price_date: str | None
    memory_bytes: float
    peak_flops: float  # of a device in its 16-bit format
    bandwidth_bytes: float
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.devices:,} x {self.accelerator.name}"

    @property
    def host_devices(self) -> int:
        """Of one machine: 4 in a rack of 72, else 8 at most."""
        return 4 if self.accelerator.node_devices == RACK else min(self.node_devices, 8)

    @property
    def watts(self) -> float | None:
        """Of a device with its share of host and site; None where its own power is not known."""
        tdp = self.accelerator.tdp_w
        return None if tdp is None else tdp * (1 + HOST_SHARE) * PUE

    @classmethod
    def of(
        cls,
        devices: int,
        name: str,
        *,
        node_devices: int | None = None,
        internode_bytes: float | None = None,
        usd_per_hour: float | None = None,
    ) -> Cluster:
        """So many devices, with their generation's usual node and network where nothing else is given.

        Raises LayoutError for no devices, an unknown accelerator, or one whose memory or rate is not known.
        """
        if devices < 1:
            raise LayoutError(f"A cluster of {devices} devices has none.", hint="Write e.g. 1024xH100.")
        device = accelerator(name)
        memory, peak, bandwidth = device.memory_bytes, device.half_flops, device.bandwidth_bytes
        if memory is None or peak is None or bandwidth is None:
            raise LayoutError(
                f"The 16-bit matrix rate, memory or bandwidth of {device.name} is not known.",
                hint="Take an accelerator that has them, e.g. H100.",
            )
        notes = [f"{device.name} is an announcement: its figures may change."] if device.announced else []
        if device.internode_bytes is None and internode_bytes is None:
            notes.append(f"Assumed: {INTERNODE / 1e9:g} GB/s a device between nodes.")
        return cls(
            devices=devices,
            accelerator=device,
            node_devices=min(node_devices or device.node_devices or 8, devices),
            intranode_bytes=device.intranode_bytes or INTRANODE,
            internode_bytes=internode_bytes or device.internode_bytes or INTERNODE,
            usd_per_hour=usd_per_hour or device.rental_usd_per_hour,
            price_date="as given" if usd_per_hour else device.rental_date,
            memory_bytes=memory, peak_flops=peak, bandwidth_bytes=bandwidth, notes=tuple(notes),
        )  # fmt: skip

    @classmethod
    def parse(cls, text: str, usd_per_hour: float | None = None) -> Cluster:
        """ "1024xH100". Raises LayoutError for anything else."""
        found = CLUSTER.fullmatch(text)
        if found is None:
            raise LayoutError(f"{text!r} is no cluster.", hint="Write COUNTxACCELERATOR, e.g. 1024xH100.")
        return cls.of(int(re.sub("[_,]", "", found[1])), found[2], usd_per_hour=usd_per_hour)
