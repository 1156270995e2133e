"""A model card in the form of Hugging Face: metadata in YAML, then what is known of the model in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.adapting.records import Adapted
from isoflop.explaining.records import Explained, Gap, Slice
from isoflop.metrics.protocol import Comparison, Score
from isoflop.records import Interval
from isoflop.store import atomic_write

TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
CARD = "README.md"
SHOWN = 10  # slices
PIPELINES: Mapping[str, str] = {  # Hugging Face's names of tasks, where they differ from ours or are the same
    "classification": "text-classification", "multi-label": "text-classification",
    "regression": "text-classification", "tagging": "token-classification",
    "question-answering": "question-answering", "summarisation": "summarization",
    "translation": "translation", "generation": "text-generation", "code": "text-generation",
    "masked": "fill-mask", "similarity": "sentence-similarity", "embedding": "feature-extraction",
    "image-classification": "image-classification", "speech": "automatic-speech-recognition",
}  # fmt: skip
NO_LICENCE = (
    "Not stated: whoever publishes the model has to, within the licences of the base and of the data."
)


def write_card(
    path: Path, name: str, found: Explained, adapted: Adapted | None = None, *, method: str = "",
) -> None:  # fmt: skip
    """Write the card of a model; its pictures are beside it. Raises ProjectError when that fails."""
    atomic_write(path, card(name, found, adapted, method=method))


def card(name: str, found: Explained, adapted: Adapted | None = None, *, method: str = "") -> str:
    """Markdown with metadata, which `huggingface_hub.ModelCard` reads back."""
    from huggingface_hub import ModelCard, ModelCardData

    licence = None if adapted is None else licence_of(Path(adapted.base_path))
    pipeline = PIPELINES.get(found.task)
    data = ModelCardData(
        license=licence, library_name="transformers", pipeline_tag=pipeline, tags=["isoflop", found.task],
        model_name=name, metrics=[score.metric for score in found.scores] or None,
        eval_results=_results(found, pipeline or found.task) or None,
    )  # fmt: skip
    baseline = {s.metric: s for s in adapted.baseline} if adapted is not None else {}
    words = ModelCard.from_template(
        data, template_path=str(TEMPLATE), name=name, what=_what(found, adapted), adapted=adapted,
        method=method, found=found, licence=licence or NO_LICENCE, baseline=bool(baseline),
        options=_options(adapted), level=_level(found),
        scores=[_score_row(score, baseline) for score in found.scores],
        peers=_peer_rows(adapted),
        law=_laws(adapted),
        slices=[_slice_row(s) for s in found.slices.slices[:SHOWN]] if found.slices else [],
        robustness=[
            (d.perturbation, f"{d.rate:.0%}", *_change(d.comparison)) for d in found.robustness
        ],
        gaps=[_gap_row(gap) for gap in found.fairness.gaps] if found.fairness else [],
        calibration=_with_range(found.reliability.error) if found.reliability else "",
        faithful=_faithful(found), limits=_limits(found, adapted),
    )  # fmt: skip
    return str(words.content)


def licence_of(base: Path) -> str | None:
    """What the card of a base model says, if it has one."""
    from huggingface_hub import ModelCard

    path = base / CARD
    return ModelCard.load(path, ignore_metadata_errors=True).data.license if path.is_file() else None


def _results(found: Explained, task_type: str) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task_type, dataset_type="local", dataset_name=found.data or "test examples",
            dataset_split="test", metric_type=score.metric, metric_name=score.metric,
            metric_value=round(score.value, 6),
            metric_args={"low": round(score.low, 6), "high": round(score.high, 6), "level": score.level},
        )
        for score in found.scores
    ]  # fmt: skip


def _what(found: Explained, adapted: Adapted | None) -> str:
    if adapted is None:
        return f"A model for {found.task}."
    labels = adapted.spec.labels
    named = f", with the labels {', '.join(labels[:20])}" if 1 < len(labels) <= 20 else ""
    base = "/".join(Path(adapted.base_path).parts[-2:])  # a folder is often called "model", or by its size
    return f"`{base}`, adapted to {found.task}{named}."


def _laws(adapted: Adapted | None) -> list[str]:
    """What the laws of the model and of its peer say."""
    laws = () if adapted is None else (adapted.law, adapted.peer.law if adapted.peer else None)
    return [sentence for law in laws if law for sentence in law.sentences]


def _peer_rows(adapted: Adapted | None) -> list[tuple[str, ...]]:
    """What is kept beside its peer, and beside the model that it is of, each alone."""
    if adapted is None or adapted.peer is None:
        return []
    sides = {"the peer": adapted.peer.apart, "the model": adapted.peer.gain}
    return [(c.metric, name, _number(c.first), *_change(c)) for name, apart in sides.items() for c in apart]


def _options(adapted: Adapted | None) -> str:
    given = {} if adapted is None else adapted.config.method_options
    return "".join(f" {name}={value}" for name, value in sorted(given.items()))


def _level(found: Explained) -> str:
    return f"{found.scores[0].level:.0%}" if found.scores else "no"


def _score_row(score: Score, baseline: Mapping[str, Score]) -> tuple[str, ...]:
    before = baseline.get(score.metric)
    other = () if not baseline else ("–", "–") if before is None else (_number(before.value), _range(before))
    return score.metric, _number(score.value), _range(score), *other, _cell(score.says)


def _cell(text: str) -> str:
    """In a table."""
    return text.replace("|", "\\|")


def _slice_row(s: Slice) -> tuple[str, ...]:
    return (
        _cell(s.name), str(s.score.examples), _number(s.score.value), _range(s.score), _number(s.others),
        f"{s.q:.2g}", "worse" if s.worse else "",
    )  # fmt: skip


def _change(c: Comparison) -> tuple[str, ...]:
    return _number(c.second), f"{c.difference:+.4f}", f"{c.low:+.4f} to {c.high:+.4f}"


def _gap_row(gap: Gap) -> tuple[str, ...]:
    ends = (f"{name} {_number(gap.values[name])}" for name in (gap.highest, gap.lowest))
    return gap.measure, *ends, _number(gap.gap.value), _range(gap.gap)


def _faithful(found: Explained) -> dict[str, str]:
    if found.faithfulness is None:
        return {}
    named = ("comprehensiveness", "random_comprehensiveness", "sufficiency", "random_sufficiency")
    return {name: _with_range(getattr(found.faithfulness, name)) for name in named}


def _limits(found: Explained, adapted: Adapted | None) -> tuple[str, ...]:
    """What went otherwise than one would think."""
    cut = sum(a.cut for a in found.attributions)
    told = (
        (f"{cut} of {len(found.attributions)} texts that are shown were longer than it reads",) if cut else ()
    )
    return (*told, *found.notes, *(adapted.notes if adapted is not None else ()))


def _number(value: float) -> str:
    return f"{value:.4f}"


def _range(found: Score | Interval) -> str:
    return f"{found.low:.4f} to {found.high:.4f}"


def _with_range(found: Score | Interval) -> str:
    return f"{_number(found.value)} ({_range(found)})"
