"""What an output goes by: integrated gradients (Sundararajan et al., arXiv 1703.01365, equation 1) by captum.

The path of a text leads from a baseline to the embeddings of the text. In the baseline each word is the mask,
padding or unknown token: whichever speaks least for the label, since from a baseline that has it already
there is nothing to attribute. Of a label the output is its log-odds in nats, of a regression the head's. The
path has as many points as it takes for the attributions to sum to the difference of its ends (their axiom of
completeness).

Shapes: b points of the path, t tokens, d width, C labels, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from isoflop.errors import AdaptError
from isoflop.explaining.records import Attribution, Word
from isoflop.explaining.words import joined
from isoflop.tasks.protocol import BOTH, Base, Spec, Task
from isoflop.tasks.tagging import WORDS as BEGINS
from isoflop.tasks.text import tokenized

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = (32, 128, 512)  # points of the path, more of them while the sum is not right
COMPLETE = 0.02  # error of the sum, as a share of the difference, at which it is
BLOCK = 32  # points in one pass


@dataclass(frozen=True)
class Heat:
    """What an image's label goes by."""

    image: NDArray[np.float64]  # (h, w, 3), as the model sees it, in [0, 1]
    heat: NDArray[np.float64]  # (h, w), nats of log-odds a pixel
    label: str
    value: float  # log-odds
    baseline: float  # of an image of zeros after normalising: of mean colour
    completeness_error: float


@dataclass(frozen=True)
class Tokens:
    """A text as a model reads it, and which of its words each token belongs to."""

    features: dict[str, Any]
    special: tuple[bool, ...]
    numbers: tuple[int, ...]  # (t,) of words; -1: of none
    words: tuple[tuple[str, int, int], ...]  # and their characters [start, end)


class Path(NamedTuple):
    """Integrated gradients of each element of the input, and the output at both ends."""

    attributions: Tensor
    value: float
    baseline: float
    error: float  # of the sum, as a share of the difference of the ends
    steps: int


def attribute(
    task: Task, base: Base, spec: Spec, model: nn.Module, given: Any, *, label: str | None = None,
    word: int | None = None,
) -> Attribution:  # fmt: skip
    """The words of a text and their share in a label's log-odds: by default of the label that is predicted.

    Of a tagger `given` is a list of words, and `word` the number of the one whose tag is asked about. Raises
    AdaptError for a task or a model that has no such attributions, or an unknown label.
    """
    model.eval()
    tokens = tokens_of(task, base, spec, given)
    if not isinstance(given, str) and word is None:
        raise AdaptError("a tagger has an output for each word", hint="say which word's tag is asked about")
    batch = task.collate(base, spec, [tokens.features])
    ids = batch.pop("input_ids")
    embed = model.get_input_embeddings()  # type: ignore[operator]
    at = None if word is None else _first_token(tokens, word)

    def logits(x_btd: Tensor) -> Tensor:
        rest = {name: value.expand(len(x_btd), *value.shape[1:]) for name, value in batch.items()}
        found = task.logits(model, {"inputs_embeds": x_btd, **rest})
        return found if at is None else found[:, at]

    with torch.no_grad():
        x = embed(ids)
        number = _number(spec, logits(x), label)
        blanks = [(name, embed(_blank(tokens, ids, token))) for name, token in _baseline_tokens(base)]
        name, x0 = min(blanks, key=lambda blank: float(output(task, logits(blank[1]), number)))
    path = _integrated(lambda e: output(task, logits(e), number), x, x0)
    share_t = path.attributions.sum(-1)[0].double().numpy()
    return Attribution(
        text=given if isinstance(given, str) else " ".join(given),
        words=tuple(
            Word(text=text, start=start, end=end, attribution=float(share_t[_at(tokens, i)].sum()))
            for i, (text, start, end) in enumerate(tokens.words)
        ),
        output=_named(task, spec, number, None if word is None else given[word]),
        unit="standard deviations" if is_number(task) else "nats of log-odds",
        value=path.value, baseline=path.baseline, baseline_token=name, total=float(share_t.sum()),
        completeness_error=path.error, steps=path.steps, cut=bool(tokens.features.get("cut", False)),
    )  # fmt: skip


def _named(task: Task, spec: Spec, number: int, word: str | None) -> str:
    """What the output is called."""
    if is_number(task):
        return "the number"
    return spec.labels[number] if word is None else f"{spec.labels[number]} of {word}"


def attribute_image(task: Task, base: Base, spec: Spec, model: nn.Module, row: Mapping[str, Any]) -> Heat:
    """The pixels of a row's image and their share in the log-odds of the label that is predicted."""
    model.eval()
    encoded = task.encode(base, spec, {name: [value] for name, value in row.items()})
    batch = task.collate(base, spec, [{name: values[0] for name, values in encoded.items()}])
    x = batch["pixel_values"]

    def logits(x_bchw: Tensor) -> Tensor:
        return task.logits(model, {"pixel_values": x_bchw})

    with torch.no_grad():
        number = _number(spec, logits(x), None)
    path = _integrated(lambda e: output(task, logits(e), number), x, torch.zeros_like(x))
    return Heat(
        image=_seen(x[0]), heat=path.attributions[0].sum(0).double().numpy(), label=spec.labels[number],
        value=path.value, baseline=path.baseline, completeness_error=path.error,
    )  # fmt: skip


def tokens_of(task: Task, base: Base, spec: Spec, given: Any) -> Tokens:
    """Features of a text, or of a list of words, and the words of its tokens.

    Raises AdaptError where the task reads anything but one text, or the model is no encoder or decoder.
    """
    role = task.roles[0]
    others = [r.name for r in task.roles[1:] if r.holds in ("text", "image", "audio") and not r.optional]
    if role.holds not in ("text", "tokens") or others or base.kind == BOTH:
        raise AdaptError(
            f"token attributions are of encoders and decoders that read one text, not of {task.name} "
            f"with a model of the kind {base.kind}",
            hint="explain a classifier, a regression or a tagger, or leave --examples at 0",
        )
    encoded = task.encode(base, spec, {role.name: [given]})
    features = {name: values[0] for name, values in encoded.items()}
    return _split(base, features, given) if role.holds == "tokens" else _spoken(base, spec, features, given)


def _split(base: Base, features: dict[str, Any], given: Sequence[str]) -> Tokens:
    """By the words as they were given; characters are those of all of them, joined by blanks."""
    if len(features["input_ids"]) > 1:
        raise AdaptError(f"{len(given)} words are more than the model reads at once", hint="give fewer words")
    specials, number = set(base.processor.all_special_ids), -1
    numbers = []
    for id, begins in zip(features["input_ids"][0], features[BEGINS][0], strict=True):
        number = max(number, begins)
        numbers.append(-1 if begins < 0 and id in specials else number)
    ends = np.cumsum([len(word) + 1 for word in given]) - 1
    words = [(word, int(end) - len(word), int(end)) for word, end in zip(given, ends, strict=True)]
    return Tokens(features, tuple(n < 0 for n in numbers), tuple(numbers), tuple(words))


def _spoken(base: Base, spec: Spec, features: dict[str, Any], text: str) -> Tokens:
    """By the characters of the tokens."""
    columns, _ = tokenized(base, spec, [text], return_offsets_mapping=True, return_special_tokens_mask=True)
    found = {name: values[0] for name, values in columns.items()}
    if list(found["input_ids"]) != list(features["input_ids"]):
        raise AdaptError(
            "the task adds tokens of its own to a text, and they have no words",
            hint="explain a classifier, a regression or a tagger",
        )
    spans = [(int(start), int(end)) for start, end in found["offset_mapping"]]
    numbers = joined(text, spans)
    words = []
    for number in range(max(numbers, default=-1) + 1):
        mine = [span for span, n in zip(spans, numbers, strict=True) if n == number]
        start, end = mine[0][0], mine[-1][1]
        word = text[start:end].strip()
        start += text[start:end].index(word)
        words.append((word, start, start + len(word)))
    return Tokens(features, tuple(map(bool, found["special_tokens_mask"])), tuple(numbers), tuple(words))


def is_number(task: Task) -> bool:
    """Whether a task predicts a number, whose output is in standard deviations of the training examples'."""
    return any(role.holds == "number" for role in task.roles)


def output(task: Task, logits: Tensor, number: int) -> Tensor:
    """(b,): log-odds of a label, in nats; the logit itself where labels do not exclude one another.

    Of categories that is z_c - ln(sum over the others of e^z): unlike z_c alone, what is added to all logits
    does not change it.
    """
    chosen = logits[:, number]
    if not task.soft:
        return chosen
    others = torch.cat([logits[:, :number], logits[:, number + 1 :]], dim=1)
    return chosen - others.logsumexp(1)


def _integrated(outputs: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor) -> Path:
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise AdaptError("captum is not installed", hint="pip install 'isoflop[adapt]'") from None
    with torch.no_grad():
        value, baseline = float(outputs(x)), float(outputs(x0))
    more = value - baseline
    error, found, steps = float("inf"), torch.zeros_like(x), 0
    for steps in STEPS:
        found = IntegratedGradients(outputs).attribute(x, x0, n_steps=steps, internal_batch_size=BLOCK)
        error = abs(float(found.sum()) - more) / abs(more) if more else 0.0
        if error <= COMPLETE:
            break
    return Path(found.detach(), value, baseline, error, steps)


def _number(spec: Spec, logits: Tensor, label: str | None) -> int:
    """Of the output that is asked about."""
    if label is None:
        return int(logits[0].argmax())
    if label not in spec.labels:
        raise AdaptError(f"{label!r} is no label of the model", hint=f"one of: {', '.join(spec.labels)}")
    return spec.labels.index(label)


def _baseline_tokens(base: Base) -> list[tuple[str, int]]:
    """Those that stand for no word."""
    tokenizer = base.processor
    names = dict.fromkeys((tokenizer.mask_token, tokenizer.pad_token, tokenizer.unk_token))
    return [(name, int(tokenizer.convert_tokens_to_ids(name))) for name in names if name is not None]


def _blank(tokens: Tokens, ids_1t: Tensor, token: int) -> Tensor:
    """With that token for every word; special tokens stay."""
    return torch.where(torch.tensor(tokens.special)[None], ids_1t, torch.full_like(ids_1t, token))


def _at(tokens: Tokens, word: int) -> list[int]:
    return [i for i, number in enumerate(tokens.numbers) if number == word]


def _first_token(tokens: Tokens, word: int) -> int:
    found = _at(tokens, word)
    if not found:
        raise AdaptError(
            f"the text has no word {word} within what the model reads", hint="count words from 0"
        )
    return found[0]


def _seen(x_chw: Tensor) -> NDArray[np.float64]:
    """An image's values from its darkest to its lightest, (h, w, 3)."""
    x = x_chw.double().numpy().transpose(1, 2, 0)
    span = x.max() - x.min()
    scaled = (x - x.min()) / span if span else np.zeros_like(x)
    return np.asarray(np.broadcast_to(scaled, (*scaled.shape[:2], 3)))
