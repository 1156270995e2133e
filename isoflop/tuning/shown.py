"""A tuning as a table shows it, and what to type to use it."""

from __future__ import annotations

from isoflop.families import FAMILIES, OWN
from isoflop.trials import Trial, Tuning
from isoflop.tuning.values import number, setting


def title(done: Tuning) -> str:
    model = done.config.model
    return f"{len(done.trials)} trials of {model.n_layers} x {model.d_model}; {done.flops:.3g} FLOPs in all"


def head(done: Tuning) -> tuple[str, ...]:
    return ("trial", *done.values, *(f"loss, {t:,} tokens" for t in done.token_counts), "FLOPs")


def rows(done: Tuning) -> list[tuple[str, ...]]:
    """A row a trial: those that came farthest first, and of them the best."""
    return [_row(trial, done) for trial in sorted(done.trials, key=_rank)]


def command(done: Tuning) -> str:
    """The line that uses what was found."""
    found = done.trials[done.best].values
    settings = [f"{name}={setting(name, found, done.config)}" for name in done.values]
    changes = (f"--set {change}" for change in [*done.changes, *settings])
    return " ".join(["isoflop sweep", *_family(done), *changes])


def _family(done: Tuning) -> list[str]:
    """The options that name the family; of a scaled folder only the user knows where it is."""
    model = done.config.model
    said = [] if model.family == OWN.name else ["--family", "FOLDER" if model.template else model.family]
    usual = FAMILIES[model.family].objective if model.family in FAMILIES else ""
    return said + ([] if model.objective == usual else ["--objective", model.objective])


def _rank(trial: Trial) -> tuple[int, float]:
    return -len(trial.losses), trial.losses[-1] if trial.losses else 0.0


def _row(trial: Trial, done: Tuning) -> tuple[str, ...]:
    names = {0: "the recipe", done.best: "the best"} if done.best else {0: "the recipe, the best"}
    words = [str(trial.number), names.get(trial.number, ""), "" if trial.state == "done" else trial.state]
    losses = [f"{loss:.4f}" for loss in trial.losses]
    missing = ["–"] * (len(done.token_counts) - len(losses))
    tried = [number(trial.values[name]) for name in done.values]
    return (", ".join(filter(None, words)), *tried, *losses, *missing, f"{trial.flops:.2g}")
