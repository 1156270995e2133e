"""Tiny models of transformers of every kind that reads text, and words to translate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from isoflop.tasks import Base, LossOptions, Spec, load_base
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER
from isoflop.tasks.sequences import FromTextToText

END = "<|end|>"
WINDOW = 64
ENGLISH = ["the", "cat", "dog", "house", "red", "runs", "sleeps", "small", "tree", "bird"]
GERMAN = ["die", "Katze", "Hund", "Haus", "rot", "rennt", "schläft", "klein", "Baum", "Vogel"]
WORDS = dict(zip(ENGLISH, GERMAN, strict=True))
RATES = {BOTH: 2e-2, DECODER: 1e-2}


def sentences(number: int, seed: int) -> Dataset:
    """Of two to four words, and the same word for word in the other language."""
    rng = np.random.default_rng(seed)
    drawn = [list(rng.choice(ENGLISH, rng.integers(2, 5))) for _ in range(number)]
    return Dataset.from_dict({
        "source": [" ".join(words) for words in drawn],
        "target": [" ".join(WORDS[word] for word in words) for words in drawn],
    })  # fmt: skip


def tokenizer_of(texts: Sequence[str], kind: str) -> PreTrainedTokenizerFast:
    """Of bytes, with one end token that begins and pads too, as our own; an encoder's marks a text's ends."""
    special = [END] if kind != ENCODER else [END, "[CLS]", "[SEP]", "[MASK]"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    trained.train_from_iterator(texts, trainer)
    if kind != ENCODER:
        return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=END, bos_token=END)
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, pad_token=END, cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def base_of(folder: Path, kind: str) -> Base:
    """A base with random weights, saved to a folder."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of([" ".join(ENGLISH), " ".join(GERMAN), "Label: good bad"] * 9, kind)
    size = len(tokenizer)
    both = {"num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    made: dict[str, Any] = {
        BOTH: lambda: T5ForConditionalGeneration(T5Config(
            vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
            initializer_factor=0.3, decoder_start_token_id=0, pad_token_id=0, eos_token_id=0,
        )),
        DECODER: lambda: Qwen3ForCausalLM(Qwen3Config(
            **both, vocab_size=size, num_key_value_heads=4, head_dim=8, max_position_embeddings=WINDOW,
            eos_token_id=0, bos_token_id=0,
        )),
        ENCODER: lambda: BertForMaskedLM(BertConfig(
            **both, vocab_size=size, max_position_embeddings=WINDOW, pad_token_id=0,
        )),
    }  # fmt: skip
    made[kind]().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_base(folder, max_length=WINDOW)


def encoded(task: FromTextToText, base: Base, spec: Spec, rows: Dataset) -> list[dict[str, Any]]:
    columns = task.encode(base, spec, rows[:])
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def batch_of(task: FromTextToText, base: Base, spec: Spec, rows: Dataset) -> dict[str, Tensor]:
    return task.collate(base, spec, encoded(task, base, spec, rows))


def learned(task: FromTextToText, base: Base, spec: Spec, rows: Dataset, steps: int) -> nn.Module:
    """Plain AdamW on batches of 32, the rate rising and falling."""
    model = task.build(base, spec)
    rate = RATES[base.kind]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    features = encoded(task, base, spec, rows)
    for step in range(steps):
        start = step * 32 % (len(features) - 32)
        batch = task.collate(base, spec, features[start : start + 32])
        task.loss(task.logits(model, batch), batch, LossOptions()).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    return model.eval()
