"""What limits a plan: data, serving, memory, latency, a teacher to pay; and what easing each of them is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from isoflop.errors import BudgetError, FitError
from isoflop.flops import weight_bytes
from isoflop.laws.observations import BITS
from isoflop.laws.result import LARGEST, Fit
from isoflop.laws.split import Split
from isoflop.records import Record

# Each limit, what easing it twofold is called, and the factor.
EASED = {
    "unique_tokens": ("Twice the unique data", 2.0),
    "max_params": ("Twice the parameters allowed", 2.0),
    "max_memory": ("Twice the memory", 2.0),
    "max_latency": ("Twice the latency allowed", 2.0),
    "serving_bits": ("Twice the bits at serving", 2.0),
    "inference_tokens": ("Half the tokens to serve", 0.5),
    "teacher_params": ("A teacher of the same loss at half the cost", 0.5),
}
COVARIATES = {"serving_bits": "bits_post", "teacher_loss": "teacher_loss"}  # limits that a law may know


class Limits(Record):
    """Constraints of a plan; counts in parameters and tokens, memory in bytes, latency in seconds."""

    inference_tokens: float = 0.0  # served over the model's life, paid from the budget
    unique_tokens: float | None = None
    max_params: float | None = None
    serving_bits: float | None = None  # of a weight; 16 where a limit needs them
    max_memory: float | None = None  # bytes that hold the weights
    max_latency: float | None = None  # seconds a generated token
    bandwidth: float | None = None  # bytes a second from memory
    teacher_loss: float | None = None  # nats a token, on the same held-out text
    teacher_params: float | None = None  # None: the teacher's logits cost nothing

    def with_covariates(self, others: Mapping[str, float]) -> tuple[Limits, dict[str, float]]:
        """These limits with those given as covariates of the law, and the covariates that are left."""
        rest, moved = dict(others), {}
        for name, column in COVARIATES.items():
            if column in rest:
                if getattr(self, name) is not None:
                    raise FitError(
                        f"{name} is given twice, once as a covariate.", hint=f"Leave out --with {column}."
                    )
                moved[name] = rest.pop(column)
        return self.model_copy(update=moved), rest

    def check(self, fit: Fit) -> None:
        """Raises BudgetError for impossible numbers, FitError for what the law cannot answer."""
        for name, value in self:
            if name == "inference_tokens":
                if not (np.isfinite(value) and value >= 0):
                    raise BudgetError(f"inference_tokens is {value:g}", hint="give 0 or more tokens")
            elif value is not None and not 0 < value < LARGEST:
                raise BudgetError(f"{name} is {value:g}", hint="give a positive number")
        if self.max_latency is not None and self.bandwidth is None:
            raise FitError(
                "A latency needs the bandwidth of the memory that holds the weights.",
                hint="Give e.g. --bandwidth 900GB/s: the time of a token is that of reading every weight.",
            )
        knows = "teacher_loss" in fit.columns
        if not knows and (self.teacher_loss is not None or self.teacher_params is not None):
            raise FitError(
                f"The law {fit.law} does not know what a teacher is worth.",
                hint="Use busbridge-2025, or fit the law distillation to a table with a column teacher_loss.",
            )
        if knows and self.teacher_loss is None:
            raise FitError(
                "A plan with a teacher needs its loss.",
                hint="Give e.g. --teacher-loss 2.1, in nats a token on the same held-out text.",
            )
        if min(self.caps.values(), default=1.0) < 1:
            raise BudgetError(
                f"{self.tightest} leaves less than one parameter", hint="raise it, or serve with fewer bits"
            )

    @property
    def bits(self) -> float:
        """Bits of a weight at serving."""
        return BITS if self.serving_bits is None else self.serving_bits

    @property
    def caps(self) -> dict[str, float]:
        """The largest N that each limit allows."""
        one = weight_bytes(1.0, self.bits)
        out = {} if self.max_params is None else {"max_params": self.max_params}
        if self.max_memory is not None:
            out["max_memory"] = self.max_memory / one
        if self.max_latency is not None and self.bandwidth is not None:
            out["max_latency"] = self.max_latency * self.bandwidth / one
        return out

    @property
    def tightest(self) -> str | None:
        """The limit that allows the smallest N."""
        return min(self.caps, key=self.caps.__getitem__, default=None)

    def split(self, fit: Fit, others: Mapping[str, float]) -> Split:
        """How the law splits compute under these limits; `others` are its further covariates."""
        known = {column: getattr(self, name) for name, column in COVARIATES.items() if column in fit.columns}
        free = fit.split(**others, **{column: value for column, value in known.items() if value is not None})
        teacher = 0.0 if self.teacher_params is None else float(free.per_token(np.array(self.teacher_params)))
        return replace(
            free,
            inference_tokens=self.inference_tokens,
            unique_tokens=self.unique_tokens,
            max_params=min(self.caps.values(), default=None),
            beside_flops=teacher / 3.0,  # forward only: eq. 9 of Busbridge et al. 2502.08606
        )

    def eased(self, name: str) -> Limits:
        """These limits with one of `EASED` twice as generous."""
        return self.model_copy(update={name: getattr(self, name) * EASED[name][1]})

    def sentences(self, fit: Fit) -> list[str]:
        """What the limits count and what they leave out."""
        out = []
        if self.serving_bits is not None and "bits_post" not in fit.columns:
            out.append(
                f"The law {fit.law} does not know what {self.bits:g} bits cost in loss: they count for memory"
                " and latency only. kumar-2024-post knows what quantization costs."
            )
        width = f"{self.bits:g} bits each" + (", as none were given" if self.serving_bits is None else "")
        if self.max_memory is not None:
            out.append(
                f"The memory holds the parameters that multiply, at {width}; the embedding table, activations"
                " and the KV cache are not counted."
            )
        if self.bandwidth is not None:
            out.append(
                f"The latency is a lower bound: the time to read every weight, at {width}, once a token for"
                " one sequence."
            )
        if self.teacher_loss is not None:
            out.append(
                "The teacher's own training is not counted."
                if self.teacher_params is not None
                else "The teacher costs nothing here, as if its logits were cached or free: only the student"
                " is paid. Its forward passes count with --teacher-params."
            )
        return out
