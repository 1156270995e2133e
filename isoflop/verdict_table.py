"""Verdicts in words: a row each, for the command line and the report."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.gain import BYTES, PRODUCT, SECONDS
from isoflop.records import Gain, Interval
from isoflop.verdict import Verdict, name_of

HEAD = (
    "step", "loss", "change", "MB", "ms/token", "memory MB", "FLOPs", "bytes", "seconds", "both", "training",
    "verdict",
)  # fmt: skip
TITLE = "Verdicts; bytes, seconds, both and training: in doublings"
CAPTION = (
    "Loss in nats a token in the engine, its change from what it was made from, what serving and making it "
    "takes, and doublings: of bytes, of seconds a token, of their product at equal loss, of training compute"
)
DENSE_LOADED = (
    "The dense models were timed while the machine had other work: trust no doublings of seconds, and time "
    "all anew with isoflop verdict --again."
)
NEVER = 40.0  # inference doublings beyond this stand for a loss that no dense model reaches


def row(v: Verdict) -> tuple[str, ...]:
    """Cells of HEAD."""
    change = "" if v.change is None else f"{v.change.value:+.4f}"
    worth = (doublings(v.inference[name].doublings) for name in (BYTES, SECONDS, PRODUCT))
    return (
        v.step, f"{v.served.loss:.4f}", change, f"{v.bytes / 1e6:.2f}",
        f"{1000 * v.served.seconds.value:.3f}" + ("" if v.quiet else "*"),
        f"{v.served.speed.memory_bytes / 1e6:.0f}", f"{v.flops_step:.2g}", *worth, training(v.training),
        "accepted" if v.accepted else "refused",
    )  # fmt: skip


def sentence(v: Verdict) -> str:
    """The artifact, and why."""
    return f"{v.step}, {name_of(v.path)}: {v.why}"


def doublings(found: Interval) -> str:
    return "no bound" if found.value > NEVER else f"{found.value:+.2f}"


def training(found: Gain | None) -> str:
    if found is None:
        return "not known"
    return "no bound" if found.doublings.value > 10 * NEVER else f"{found.doublings.value:+.2f}"


def notes(found: Sequence[Verdict]) -> list[str]:
    """What the reader of several should know."""
    out = []
    if any(not v.quiet for v in found):
        out.append("* timed while the machine had other work: these times are too long.")
    if not all(v.dense_quiet for v in found):
        out.append(DENSE_LOADED)
    if any(v.inference[PRODUCT].extrapolated for v in found):
        out.append(
            "Where no dense model as good was measured, or the law's runs are cheaper, doublings are "
            "extrapolated."
        )
    return out
