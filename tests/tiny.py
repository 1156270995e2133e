"""Tiny models to adapt: two layers of width 32 with random weights, tokenizers of a few sentences, and what
trains and asks them without the loop.

`tiny_bert`, `tiny_qwen3` and `tiny_t5` know `reviews` and are made once in a session; `encoder_in` and
`decoder_in` know given texts; `base_of` knows words and their translations.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from isoflop.corpus.bpe import train_bpe
from isoflop.metrics import METRICS, scored
from isoflop.tasks import Base, LossOptions, Spec, Task, load_base
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER
from isoflop.tasks.sequences import FromTextToText

WIDTH, LAYERS, HEADS, POSITIONS = 32, 2, 4, 64
GOOD = ("bright", "kind", "warm", "sweet", "calm", "fine")
BAD = ("dark", "cruel", "cold", "bitter", "harsh", "grim")
PLAIN = ("the", "day", "was", "and", "a", "long", "walk", "by", "river", "home", "we", "saw", "tree", "bird")
END = "<|endoftext|>"
SHAPE = {
    "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}  # fmt: skip
MARK, WINDOW = "<|end|>", 64  # of the models that translate
ENGLISH = ["the", "cat", "dog", "house", "red", "runs", "sleeps", "small", "tree", "bird"]
GERMAN = ["die", "Katze", "Hund", "Haus", "rot", "rennt", "schläft", "klein", "Baum", "Vogel"]
WORDS = dict(zip(ENGLISH, GERMAN, strict=True))
RATES = {BOTH: 2e-2, DECODER: 1e-2}


def reviews(count: int, seed: int = 0, *, good: float = 0.5) -> Dataset:
    """Texts of plain words with one word that says the label."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        label = "good" if rng.random() < good else "bad"
        words = rng.choices(PLAIN, k=rng.randint(3, 12))
        words.insert(rng.randrange(len(words)), rng.choice(GOOD if label == "good" else BAD))
        rows.append({"text": " ".join(words), "label": label})
    return Dataset.from_list(rows)


def texts() -> list[str]:
    return [row["text"] for row in reviews(300, seed=1)]


def word_pieces(texts: Iterable[str], vocabulary: int) -> Any:
    from tokenizers import BertWordPieceTokenizer, processors
    from transformers import PreTrainedTokenizerFast

    made = BertWordPieceTokenizer()
    made.train_from_iterator(texts, vocabulary, show_progress=False)
    ends = [(name, made.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    made.post_processor = processors.BertProcessing(*ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", unk_token="[UNK]",
    )  # fmt: skip


@cache
def tiny_bert() -> Path:
    """An encoder."""
    from transformers import BertConfig, BertModel

    tokenizer = word_pieces(texts(), 200)
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, initializer_range=0.1, **SHAPE
    )
    return _written(BertModel, config, tokenizer)


@cache
def tiny_qwen3() -> Path:
    """A decoder with a byte-level tokenizer."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    made = train_bpe(iter(texts()), 400)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END)
    config = Qwen3Config(
        vocab_size=made.get_vocab_size(), num_key_value_heads=2, head_dim=8,
        max_position_embeddings=4 * POSITIONS, initializer_range=0.1, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=True, **SHAPE,
    )  # fmt: skip
    return _written(Qwen3ForCausalLM, config, tokenizer)


@cache
def tiny_t5() -> Path:
    """An encoder with a decoder."""
    from tokenizers import ByteLevelBPETokenizer, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(texts(), 300, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = T5Config(
        vocab_size=made.get_vocab_size(), d_model=WIDTH, d_ff=2 * WIDTH, d_kv=8, num_layers=LAYERS,
        num_heads=HEADS, decoder_start_token_id=0,
    )  # fmt: skip
    return _written(T5ForConditionalGeneration, config, tokenizer)


TINY = {"bert": tiny_bert, "qwen3": tiny_qwen3, "t5": tiny_t5}


def encoder_in(folder: Path, texts: Iterable[str], *, positions: int = 64, vocabulary: int = 300) -> Path:
    """An encoder of random weights that reads so many tokens at once."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = word_pieces(texts, vocabulary)
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=positions, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, initializer_range=0.1, **SHAPE,
    )  # fmt: skip
    return _put(folder, BertForMaskedLM, config, tokenizer)


def decoder_in(folder: Path, texts: Iterable[str], *, positions: int = 64, vocabulary: int = 400) -> Path:
    """A causal model of random weights whose tokenizer has an end token and no pad token."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    made = train_bpe(iter(texts), vocabulary)
    config = Qwen3Config(
        vocab_size=made.get_vocab_size(), max_position_embeddings=positions, num_key_value_heads=2,
        head_dim=8, initializer_range=0.1, bos_token_id=0, eos_token_id=0, **SHAPE,
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END)
    return _put(folder, Qwen3ForCausalLM, config, tokenizer)


def sentences(number: int, seed: int) -> Dataset:
    """Of two to four words, and the same word for word in the other language."""
    rng = np.random.default_rng(seed)
    drawn = [list(rng.choice(ENGLISH, rng.integers(2, 5))) for _ in range(number)]
    return Dataset.from_dict({
        "source": [" ".join(words) for words in drawn],
        "target": [" ".join(WORDS[word] for word in words) for words in drawn],
    })  # fmt: skip


def tokenizer_of(texts: Sequence[str], kind: str) -> Any:
    """Of bytes, with one end token that begins and pads too, as our own; an encoder's marks a text's ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = [MARK] if kind != ENCODER else [MARK, "[CLS]", "[SEP]", "[MASK]"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    trained.train_from_iterator(texts, trainer)
    if kind != ENCODER:
        return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=MARK, bos_token=MARK)
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, pad_token=MARK, cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def base_of(folder: Path, kind: str) -> Base:
    """A base with random weights, saved to a folder."""
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        Qwen3Config,
        Qwen3ForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    tokenizer = tokenizer_of([" ".join(ENGLISH), " ".join(GERMAN), "Label: good bad"] * 9, kind)
    size = len(tokenizer)
    made: dict[str, Any] = {
        BOTH: lambda: T5ForConditionalGeneration(T5Config(
            vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
            initializer_factor=0.3, decoder_start_token_id=0, pad_token_id=0, eos_token_id=0,
        )),
        DECODER: lambda: Qwen3ForCausalLM(Qwen3Config(
            **SHAPE, vocab_size=size, num_key_value_heads=4, head_dim=8, max_position_embeddings=WINDOW,
            eos_token_id=0, bos_token_id=0,
        )),
        ENCODER: lambda: BertForMaskedLM(BertConfig(
            **SHAPE, vocab_size=size, max_position_embeddings=WINDOW, pad_token_id=0,
        )),
    }  # fmt: skip
    made[kind]().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_base(folder, max_length=WINDOW)


def batch_of(task: Task, base: Base, spec: Spec, rows: Dataset) -> dict[str, Tensor]:
    return task.collate(base, spec, features_of(task, base, spec, rows))


def learned(task: FromTextToText, base: Base, spec: Spec, rows: Dataset, steps: int) -> nn.Module:
    """Plain AdamW on batches of 32, the rate rising and falling."""
    model = task.build(base, spec)
    rate = RATES[base.kind]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    features = features_of(task, base, spec, rows)
    for step in range(steps):
        start = step * 32 % (len(features) - 32)
        batch = task.collate(base, spec, features[start : start + 32])
        task.loss(task.logits(model, batch), batch, LossOptions()).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    return model.eval()


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


def scores(task: Task, predictions: list[Any], references: list[Any]) -> list[float]:
    """Of the task's metrics, the chief one first."""
    return [scored(METRICS[name], predictions, references, resamples=2).value for name in task.metrics]


def _written(model_class: Any, config: Any, tokenizer: Any) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="isoflop-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _put(folder, model_class, config, tokenizer)


def _put(folder: Path, model_class: Any, config: Any, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
