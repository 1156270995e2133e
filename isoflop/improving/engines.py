"""The first part of a search: the input in each representation, by a short measurement on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence

from isoflop import flops
from isoflop.errors import ProjectError, TrainError
from isoflop.improving.estimates import SPEED_SLACK
from isoflop.improving.front import makes_needless
from isoflop.improving.probing import LOSS_TOKENS
from isoflop.improving.records import BUDGET, NEEDLESS, Candidate, Figures, Limits
from isoflop.improving.space import EXACT, Form, whole
from isoflop.improving.state import State
from isoflop.records import ModelConfig
from isoflop.transforms.quantize import KINDS, MIXED

PART = "engines"
SHARE = 0.3  # of the budget that this part may spend, the float32 of one engine apart


def least_bits(kind: str) -> float:
    """Bits that a weight has at least, as the kind's name says; 0 where it says nothing."""
    if kind == MIXED:
        return min(map(least_bits, KINDS))
    found = re.search(r"\d+", kind)
    return float(found[0]) if found else 0.0


def check_bytes(limits: Limits, forms: Sequence[Form], smallest: ModelConfig) -> None:
    """Raises TrainError where the weights alone are more bytes than allowed, whatever is done."""
    least = flops.params_total(smallest) * min(least_bits(kind) for _, kind in forms) / 8
    if limits.bytes is not None and least > limits.bytes:
        raise TrainError(
            f"no model of this search has {limits.bytes:,.0f} bytes or fewer: in the fewest bits of any type "
            f"the weights of its smallest shape alone have {least:,.0f}",
            hint="allow more bytes (--max-bytes), or begin with a smaller model",
        )


class Engines:
    """The input in every representation that an engine here opens."""

    def __init__(self, state: State, forms: Sequence[Form], asked: Sequence[str]) -> None:
        self.state, self.forms, self.asked = state, forms, asked
        self.probes = state.known.probes

    def run(self) -> list[Form]:
        """Measure them; those that are worth searching, float32 in the fastest engine among them.

        What is no better in anything than another on the input is taken not to be so on a smaller shape
        either. The first of the trials is then the input. Raises ProjectError where no engine opens it, or
        one that was asked for is not installed.
        """
        left = [form for form in self.forms if not self.state.failed(whole(form))]
        for form in [form for form in left if form[1] == EXACT]:
            if self._fastest_first() and self._had_its_share():
                self._too_late(form)
            else:
                self._measure_if_here(form)
        self._begin()
        ranks = {name: rank for rank, name in enumerate(self._fastest_first())}
        others = [form for form in left if form[1] != EXACT]
        others.sort(key=lambda f: (ranks.get(f[0], len(ranks)), f[1] == MIXED, least_bits(f[1])))
        for form in others:
            at_best = self._could_be(form)
            if form[0] in self.state.record.skipped:
                continue
            if self._had_its_share():
                self._too_late(form)
            elif (other := self._needless(form, at_best)) is not None:
                self._needless_beside(form, other, at_best)
            else:
                self._measure_if_here(form)
        return self._worth_searching()

    def _had_its_share(self) -> bool:
        return self.state.spent_on(PART) > SHARE * self.state.amount

    def _too_late(self, form: Form) -> None:
        why = f"measuring the engines has had its {SHARE:.0%} of the budget"
        self.state.refuse(whole(form), BUDGET, why, self._could_be(form))

    def _measure_if_here(self, form: Form) -> None:
        """Measure it, unless its engine is not installed."""
        try:
            self._measure(form)
        except ProjectError as error:
            if form[0] in self.asked or error.__cause__ is not None:  # the disk
                raise
            self.state.builder.progress.log(f"{form[0]} is left out: {error.message} ({error.hint})")
            self.state.change(
                skipped={**self.state.record.skipped, form[0]: f"{error.message}: {error.hint}"}
            )

    def _measure(self, form: Form) -> None:
        """Export and probe the input in one representation; one that does not pass the gate fails."""
        state, candidate = self.state, whole(form)
        with state.forgiving(candidate, PART):
            with state.part(PART):
                built = state.builder.exported(candidate, [], state.record.limits.loss_increase)
                found = state.builder.probed(built)
            self.probes[candidate.form] = (built.bytes, found)
            state.read(PART, LOSS_TOKENS)
            state.builder.progress.log(
                f"{candidate.form}: {built.bytes:,} bytes, {1000 * found.best:.3f} ms a token with "
                f"{found.threads} thread(s) of {found.engine}"
            )

    def _begin(self) -> None:
        """The input, in float32 in its fastest engine, is measured as every trial is."""
        state, names = self.state, self._fastest_first()
        if not names:
            raise ProjectError(
                "no engine here opens this model",
                hint="; ".join(state.record.skipped.values()) or "pip install 'isoflop[gguf]'",
            )
        candidate = Candidate(format=names[0], kind=EXACT)
        probe = self.probes[candidate.form][1]
        with state.part(PART):
            built = state.builder.exported(candidate, [], state.record.limits.loss_increase)
            state.served = state.builder.served(built, probe.threads)
        state.known.loss, state.known.start = state.served.loss, candidate.form
        if not state.closed(candidate):
            state.change(trials=(state.tried(candidate, built, state.served), *state.record.trials))
            state.read(PART, state.record.eval_tokens)

    def _fastest_first(self) -> list[str]:
        """Formats whose float32 was measured."""
        found = {form.split()[0]: p.best for form, (_, p) in self.probes.items() if form.split()[1] == EXACT}
        return sorted(found, key=lambda name: (found[name], name))

    def _could_be(self, form: Form) -> Figures:
        """A representation of the input at best: no loss, and bytes and seconds as its bits are fewer."""
        exact_bytes, exact = self.probes.get(whole((form[0], EXACT)).form, (0, None))
        share = least_bits(form[1]) / 32
        return Figures(
            loss=self.state.known.loss, bytes=exact_bytes * share,
            seconds=exact.best * share * (1 - SPEED_SLACK) if exact else 0.0,
        )  # fmt: skip

    def _needless(self, form: Form, at_best: Figures) -> str | None:
        """The name of another representation that is as good as it could be."""
        known = self.state.known
        for other in self.probes:
            name, kind = other.split()
            if (name, kind) == form:
                continue
            if makes_needless(known.expected(whole((name, kind))), at_best, self.state.rise):
                return other
        return None

    def _worth_searching(self) -> list[Form]:
        """Fewest bytes x seconds first, each is left out if one that stays makes it needless."""
        known, kept = self.state.known, list[Form]()
        found = {form: known.expected(whole(form)) for form in self.forms if whole(form).form in self.probes}
        for form in sorted(found, key=lambda f: found[f].bytes * found[f].seconds):
            at_best = known.at_best(whole(form))
            other = next((k for k in kept if makes_needless(found[k], at_best, self.state.rise)), None)
            if other is None:
                kept.append(form)
            elif not self.state.closed(whole(form)):
                self._needless_beside(form, whole(other).form, at_best)
        return kept

    def _needless_beside(self, form: Form, other: str, at_best: Figures) -> None:
        why = f"hardly better in anything than {other}"
        self.state.refuse(whole(form), NEEDLESS, why, at_best)
