"""Tiny model folders to adapt, with tokenizers trained on a few sentences: an encoder, and our own decoder's
architecture with its byte-level tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from isoflop.corpus.bpe import train_bpe
from isoflop.tasks import LossOptions, Spec, Task
from isoflop.tasks.protocol import Base

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny_bert(folder: Path, texts: Iterable[str], *, positions: int = 64, vocabulary: int = 300) -> Path:
    """An encoder of random weights that reads so many tokens at once."""
    from tokenizers import BertWordPieceTokenizer, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    made = BertWordPieceTokenizer()
    made.train_from_iterator(texts, vocabulary, show_progress=False)
    ends = [(name, made.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    made.post_processor = processors.BertProcessing(*ends)
    PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", unk_token="[UNK]",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=made.get_vocab_size(), max_position_embeddings=positions, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.1, **SHAPE,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def tiny_decoder(folder: Path, texts: Iterable[str], *, positions: int = 64, vocabulary: int = 400) -> Path:
    """A causal model of random weights whose tokenizer has an end token and no pad token."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    made = train_bpe(iter(texts), vocabulary)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token=end, eos_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=made.get_vocab_size(), max_position_embeddings=positions, num_key_value_heads=2,
        head_dim=8, initializer_range=0.1, bos_token_id=0, eos_token_id=0, **SHAPE,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def features_of(task: Task, base: Base, spec: Spec, rows: Dataset) -> list[dict[str, Any]]:
    """By Arrow, as in training."""
    encode = partial(task.encode, base, spec)
    found: Dataset = rows.map(encode, batched=True, remove_columns=rows.column_names)
    return list(found)


def adapted(
    task: Task, base: Base, rows: Dataset, *, steps: int = 40, lr: float = 3e-3, batch: int = 16
) -> tuple[nn.Module, Spec, list[float]]:
    """A model that was trained on the rows, and its losses, in nats an example."""
    torch.manual_seed(0)
    spec = task.spec(rows, base)
    model = task.build(base, spec).train()
    features = features_of(task, base, spec, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses: list[float] = []
    for step in range(steps):
        some = [features[(step * batch + i) % len(features)] for i in range(min(batch, len(features)))]
        collated = task.collate(base, spec, some)
        nats: Tensor = task.loss(task.logits(model, collated), collated, LossOptions())
        assert nats.shape == (len(some),)
        nats.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(nats.mean().item())
    return model.eval(), spec, losses


@torch.no_grad()
def predicted(
    task: Task, base: Base, spec: Spec, model: nn.Module, rows: Dataset, *, batch: int = 8
) -> list[Any]:
    features = features_of(task, base, spec, rows)
    starts = range(0, len(features), batch)
    parts = [task.collate(base, spec, features[start : start + batch]) for start in starts]
    return [found for part in parts for found in task.predict(model, base, spec, part)]
