"""Tables that are known by their columns: ours, Epoch AI's published ones, and two that derive from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from isoflop.trend.metrics import HARDWARE, MODELS, USER

GIGA = 1e9
UNNOTED = "not called notable by Epoch AI"


@dataclass(frozen=True)
class Format:
    """Which column of a file is which of ours; of several names the first that the file has."""

    name: str
    kind: str  # of table
    signature: tuple[tuple[str, ...], ...]  # a file is of this format if it has one name of each
    label: tuple[str, ...]  # columns that name the row
    group: tuple[str, ...]  # and who made it
    date: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]  # of numbers, by our names
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of words, by our names
    times: Mapping[str, float] = field(default_factory=dict)  # to our units, 1 if not here
    own: bool = False  # of the package or the user: a bad cell is an error
    keep: tuple[str, str] | None = None  # only rows whose column has this value; "": any
    why_keep: str = ""


def _same(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


MODEL_COLUMNS = _same("params_total", "params_active", "tokens", "epochs", "flops", "cost_usd",
                      "hardware_count")  # fmt: skip
RATES = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8")
HARDWARE_COLUMNS = {
    **{rate: (f"{rate}_flops", f"{rate}_ops", rate) for rate in RATES},
    **_same("memory_bytes", "bandwidth_bytes", "intranode_bytes", "tdp_w", "launch_price_usd"),
}

OUR_MODELS = Format(
    name="isoflop models", kind=MODELS, own=True,
    signature=(("name",), ("date",), ("params_total",), ("flops",)),
    label=("name",), group=("organisation",), date=("date",),
    columns=MODEL_COLUMNS,
    texts=_same("confidence", "domain", "open_weights", "source", "hardware", "flops_how"),
)  # fmt: skip
OUR_HARDWARE = Format(
    name="isoflop accelerators", kind=HARDWARE, own=True,
    signature=(("name",), ("release",), ("bandwidth_bytes",)),
    label=("name",), group=("manufacturer",), date=("release",),
    columns=HARDWARE_COLUMNS,
    texts=_same("confidence", "source", "aliases", "announced"),
)  # fmt: skip
# Epoch AI, CC BY 4.0; older files say System for Model. Their dataset size counts each datapoint once.
EPOCH_MODELS = Format(
    name="Epoch AI models", kind=MODELS,
    signature=(("Model", "System"), ("Publication date",), ("Training compute (FLOP)",)),
    label=("Model", "System"), group=("Organization", "Organization (from Organization)"),
    date=("Publication date",),
    columns={
        "params_total": ("Parameters",),
        "unique_tokens": (
            "Training dataset size (total)", "Training dataset size (datapoints)",
            "Training dataset size (gradients)", "(DEPRECATED) Training dataset size (datapoints)",
        ),
        "epochs": ("Epochs",),
        "flops": ("Training compute (FLOP)",),
        "cost_usd": ("Training compute cost (2023 USD)", "Training compute cost (2020 USD)"),
        "hardware_count": ("Hardware quantity",),
    },
    texts={
        "confidence": ("Confidence",), "domain": ("Domain",), "hardware": ("Training hardware",),
        "source": ("Reference", "Link"), "open_weights": ("Open model weights?", "Model accessibility"),
        "params_notes": ("Parameters notes",), "tokens_notes": ("Dataset size notes",),
    },
    keep=("Notability criteria", ""), why_keep=UNNOTED,
)  # fmt: skip
EPOCH_HARDWARE = Format(
    name="Epoch AI ML hardware", kind=HARDWARE,
    signature=(("Hardware name", "Name of the hardware"), ("Release date",)),
    label=("Hardware name", "Name of the hardware"), group=("Manufacturer",), date=("Release date",),
    columns={
        "fp64": ("FP64 (double precision) performance (FLOP/s)",),
        "fp32": ("FP32 (single precision) performance (FLOP/s)",),
        "tf32": ("TF32 (TensorFloat-32) performance (FLOP/s)",),
        "fp16": ("Tensor-FP16/BF16 performance (FLOP/s)",),
        "fp8": ("FP8 performance (FLOP/s)",),
        "fp4": ("FP4 performance (FLOP/s)",),
        "int8": ("INT8 performance (OP/s)",),
        "memory_bytes": ("Memory (bytes)", "Memory size (bytes)", "Memory size per board (Byte)"),
        "bandwidth_bytes": ("Memory bandwidth (byte/s)",),
        "intranode_bytes": ("Intranode bandwidth (byte/s)",),
        "tdp_w": ("TDP (W)",),
        "launch_price_usd": ("Release price (USD)",),
    },
    texts={"source": ("Link to datasheet",)},
)  # fmt: skip
# The project's test tables: Epoch's rows with some columns renamed, derived or added.
NOTABLE = Format(
    name="notable models", kind=MODELS,
    signature=(("publication_date",), ("training_compute_flop",), ("epoch_notable",)),
    label=("name",), group=("organisation",), date=("publication_date",),
    columns={
        "params_total": ("parameters",), "params_active": ("active_parameters",),
        "tokens": ("training_tokens",), "unique_tokens": ("dataset_size_unique",), "epochs": ("epochs",),
        "flops": ("training_compute_flop",), "cost_usd": ("training_cost_usd2023",),
        "hardware_count": ("hardware_quantity",),
    },
    texts={
        "confidence": ("confidence",), "domain": ("domain",), "domains": ("epoch_domain",),
        "open_weights": ("open_weights",), "source": ("source",), "hardware": ("hardware",),
        "provenance": ("provenance",),
    },
    keep=("epoch_notable", "yes"), why_keep=UNNOTED,
)  # fmt: skip
ACCELERATORS = Format(
    name="accelerators", kind=HARDWARE,
    signature=(("release_date",), ("bandwidth_gb_s",), ("bf16_fp16_tensor_dense_flops",)),
    label=("name",), group=("manufacturer",), date=("release_date",),
    columns={
        "fp64": ("fp64_flops",), "fp32": ("fp32_flops",), "tf32": ("tf32_tensor_flops",),
        "fp16": ("bf16_fp16_tensor_dense_flops",), "fp8": ("fp8_dense_flops",), "fp4": ("fp4_dense_flops",),
        "int8": ("int8_dense_ops",), "memory_bytes": ("memory_gb",), "bandwidth_bytes": ("bandwidth_gb_s",),
        "intranode_bytes": ("intranode_bw_gb_s",), "tdp_w": ("tdp_w",),
        "launch_price_usd": ("launch_price_usd",),
    },
    texts={"provenance": ("provenance",)},
    times={"memory_bytes": GIGA, "bandwidth_bytes": GIGA, "intranode_bytes": GIGA},
)  # fmt: skip
USERS = Format(
    name="user table", kind=USER, own=True, signature=(),
    label=("name", "Name", "model", "Model", "system", "System"),
    group=("organisation", "organization", "Organisation", "Organization", "manufacturer", "Manufacturer",
           "vendor", "group"),
    date=("date", "Date", "publication_date", "Publication date", "release_date", "Release date", "release",
          "year", "Year"),
    columns={**MODEL_COLUMNS, **_same("unique_tokens"), **HARDWARE_COLUMNS},
    texts={"confidence": ("confidence", "Confidence"), "domain": ("domain", "Domain")},
)  # fmt: skip
FORMATS = (OUR_MODELS, OUR_HARDWARE, EPOCH_MODELS, EPOCH_HARDWARE, NOTABLE, ACCELERATORS)


def format_of(columns: tuple[str, ...]) -> Format:
    """The format whose signature these columns have; the user's own otherwise."""
    for known in FORMATS:
        if all(any(name in columns for name in names) for names in known.signature):
            return known
    return USERS
