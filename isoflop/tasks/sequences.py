"""What tasks that write text share: from a text to a text, by encoder-decoders and by decoders.

An encoder-decoder reads the prompt and writes the target. A decoder reads both as one sequence, prompt first,
and its loss is on the target alone. A target ends with the tokenizer's end token, which our own decoders know
as the end of a document. Of what is longer than the model, the source gives way first.

Shapes: b examples of a batch, t tokens (of the target for encoder-decoders, of both for decoders),
V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from isoflop.errors import AdaptError
from isoflop.model import IGNORE
from isoflop.tasks.protocol import BOTH, DECODER, Base, LossOptions, Role, Spec
from isoflop.tasks.text import check_kind

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

SLOT = "{}"  # of a source in a template
ROOM, QUANTILE = 1.5, 0.95  # tokens that may be written, over this quantile of the training targets
SEEN = 5000  # training targets that say how long targets are


class Pair(NamedTuple):
    """One example: a source between two fixed texts, and what is to be written, if that is known."""

    before: str
    source: str
    after: str
    target: str | None


class FromTextToText(ABC):
    """The part of a task that all share. A final class adds its rows, predictions and references."""

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]]
    metrics: ClassVar[tuple[str, ...]]
    kinds: ClassVar[tuple[str, ...]]
    soft: ClassVar[bool] = True
    keeps_end: ClassVar[bool]  # of a source that is too long its end is kept, else its beginning

    @abstractmethod
    def template(self, base: Base) -> str:
        """`Spec.source` of a base."""

    @abstractmethod
    def pairs(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> list[Pair]:
        """One of each row."""

    @abstractmethod
    def answered(self, rows: Dataset, texts: Sequence[str]) -> Dataset:
        """The rows with these texts as their targets."""

    def spec(self, rows: Dataset, base: Base) -> Spec:
        if base.processor.eos_token_id is None:
            raise AdaptError(
                f"the tokenizer of {base.folder} names no end token, so that no text would end",
                hint="name its eos_token in tokenizer_config.json",
            )
        spec = Spec(task=self.name, max_length=base.max_length, source=self.template(base))
        some = rows.select(np.linspace(0, len(rows) - 1, min(len(rows), SEEN)).astype(int))
        pairs = self.pairs(base, spec, some[:])
        if not any(pair.target for pair in pairs):
            raise AdaptError(
                f"the training examples have no target to learn {self.name} from",
                hint=f"name its column: --map {self.roles[-1].name}=COLUMN",
            )
        lengths = [len(ids) for ids in target_ids(base, [pair.target or "" for pair in pairs])]
        most = spec.max_length if base.kind == BOTH else max(1, spec.max_length // 2)
        room = min(most, math.ceil(ROOM * float(np.quantile(lengths, QUANTILE))))
        return spec.model_copy(update={"extra": {"new_tokens": room, "beams": 1}})

    def build(self, base: Base, spec: Spec) -> nn.Module:
        import transformers

        check_kind(self, base)
        name = "AutoModelForSeq2SeqLM" if base.kind == BOTH else "AutoModelForCausalLM"
        model: nn.Module = getattr(transformers, name).from_pretrained(base.folder, dtype=torch.float32)
        return model

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        return self.encode_pairs(base, spec, self.pairs(base, spec, rows))

    def encode_pairs(self, base: Base, spec: Spec, pairs: Sequence[Pair]) -> dict[str, list[Any]]:
        """Ids of prompts, and labels where the targets are known. Raises AdaptError where only some are."""
        prompts, cut = prompt_ids(base, pairs, prompt_room(base, spec), keeps_end=self.keeps_end)
        known = [pair.target is not None for pair in pairs]
        if not any(known):
            return {"input_ids": prompts, "cut": cut}
        if not all(known):
            raise AdaptError(
                f"example {known.index(False) + 1} of {len(known)} has no target, and others have",
                hint="leave it out, or give all or none a target",
            )
        inputs, labels = [], []
        targets = target_ids(base, [str(pair.target) for pair in pairs])
        for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            room = spec.max_length - (0 if base.kind == BOTH else len(prompt))
            cut[i] = cut[i] or len(target) > room
            kept = target if len(target) <= room else [*target[: room - 1], target[-1]]
            inputs.append(prompt if base.kind == BOTH else [*prompt, *kept[:-1]])
            labels.append(kept if base.kind == BOTH else [IGNORE] * (len(prompt) - 1) + kept)
        return {"input_ids": inputs, "labels": labels, "cut": cut}

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Padded at the right. Labels (b, t) are those of the logits at the same place."""
        ids = [torch.tensor(f["input_ids"]) for f in features]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=base.processor.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        }
        if "labels" in features[0]:
            labels = [torch.tensor(f["labels"]) for f in features]
            batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORE)
        return batch

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(b, t, V), each of the label at its place."""
        config: Any = model.config
        if config.is_encoder_decoder:  # labels are what the decoder reads, moved by one
            found: Tensor = model(**batch).logits
            return found
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        found = model(**inputs).logits
        return found[:, -inputs["input_ids"].shape[1] :]  # without the virtual tokens of a learned prompt

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        wanted = batch["labels"] != IGNORE
        nats = torch.nn.functional.cross_entropy(
            logits[wanted], batch["labels"][wanted], reduction="none",
            label_smoothing=options.label_smoothing,
        )  # fmt: skip
        return by_example(nats, wanted) / wanted.sum(1)

    @abstractmethod
    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """In the form that the task's metrics take."""

    @abstractmethod
    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        """In the form that the task's metrics take."""


def by_example(values_n: Tensor, wanted_bt: Tensor) -> Tensor:
    """(b,) sums of values at the wanted places, which are in the order of the places."""
    rows = wanted_bt.nonzero()[:, 0]
    return values_n.new_zeros(len(wanted_bt)).index_add(0, rows, values_n)


def filled(template: str, sources: Sequence[Any], targets: Sequence[Any] | None) -> list[Pair]:
    """Pairs of plain columns."""
    before, _, after = template.partition(SLOT)
    wanted = [None] * len(sources) if targets is None else [str(target) for target in targets]
    return [Pair(before, str(source), after, target) for source, target in zip(sources, wanted, strict=True)]


def prompt_room(base: Base, spec: Spec) -> int:
    """Tokens of a prompt at most; a decoder's leaves room for what will be written."""
    return spec.max_length - (0 if base.kind == BOTH else int(spec.extra["new_tokens"]))


def prompt_ids(
    base: Base, pairs: Sequence[Pair], room: int, *, keeps_end: bool
) -> tuple[list[list[int]], list[bool]]:
    """Ids of prompts, and which of their sources were cut to fit the room.

    Special tokens are those of the base's kind, without the end of a masked encoder's: masks come before it.
    """
    parts = [plain_ids(base, texts) for texts in zip(*(pair[:3] for pair in pairs), strict=True)]
    around = ([], []) if base.kind == DECODER else special_ids(base)
    found, cut = [], []
    for pair, before, source, after in zip(pairs, *parts, strict=True):
        start = _start(base, pair) if base.kind == DECODER else around[0]
        end = around[1] if base.kind == BOTH else []
        most = max(0, room - len(start) - len(before) - len(after) - len(end))
        kept = source[max(0, len(source) - most) :] if keeps_end else source[:most]
        found.append([*start, *before, *kept, *after, *end] or [base.processor.eos_token_id])
        cut.append(len(kept) < len(source))
    return found, cut


def plain_ids(base: Base, texts: Sequence[str]) -> list[list[int]]:
    """Of texts, without the tokenizer's special tokens."""
    found: list[list[int]] = base.processor(list(texts), add_special_tokens=False)["input_ids"]
    return found


def target_ids(base: Base, texts: Sequence[str]) -> list[list[int]]:
    """With the end token."""
    end, special = base.processor.eos_token_id, base.kind == BOTH
    found = base.processor(text_target=list(texts), add_special_tokens=special)["input_ids"]
    return [ids if ids[-1:] == [end] else [*ids, end] for ids in found]


def _start(base: Base, pair: Pair) -> list[int]:
    """A decoder's start token, where it has one and the text of a chat template does not begin with it."""
    tokenizer = base.processor
    if tokenizer.bos_token is None or (pair.before + pair.source).startswith(tokenizer.bos_token):
        return []
    return [tokenizer.bos_token_id]


def special_ids(base: Base) -> tuple[list[int], list[int]]:
    """Special tokens that an encoder's tokenizer puts before and after a text."""
    found = base.processor("a", return_special_tokens_mask=True)
    text = [i for i, special in enumerate(found["special_tokens_mask"]) if not special]
    return found["input_ids"][: text[0]], found["input_ids"][text[-1] + 1 :]


def written(model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[str]:
    """What the model writes after each prompt of a batch, with or without its targets.

    The likeliest token each time, or with `Spec.extra`'s "beams" above 1 the likeliest text of a beam search;
    at most its "new_tokens".
    """
    inputs = batch if base.kind == BOTH else _prompts_alone(base, batch)
    writer: Any = model
    ids = writer.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False,
        num_beams=int(spec.extra["beams"]), max_new_tokens=int(spec.extra["new_tokens"]),
        eos_token_id=base.processor.eos_token_id, pad_token_id=base.processor.pad_token_id,
    )  # fmt: skip
    new = ids if base.kind == BOTH else ids[:, inputs["input_ids"].shape[1] :]
    found: list[str] = base.processor.batch_decode(new, skip_special_tokens=True)
    return found


def _prompts_alone(base: Base, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A decoder's batch without its targets, padded at the left: what is written then follows each prompt."""
    ends = batch["attention_mask"].sum(1)
    if "labels" in batch:
        ends = (batch["labels"] != IGNORE).int().argmax(1) + 1  # the first target is told by the prompt's end
    rows = [ids[:end].flip(0) for ids, end in zip(batch["input_ids"], ends.tolist(), strict=True)]
    padding = base.processor.pad_token_id
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=padding).flip(1),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).flip(1),
    }
