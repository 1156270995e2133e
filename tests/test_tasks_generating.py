"""Tasks that write text: what a model reads, where its loss lies, what it learns to write."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sacrebleu import corpus_chrf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, T5Config
from transformers import T5ForConditionalGeneration as T5

from isoflop.errors import AdaptError
from isoflop.tasks import TASKS, Base, LossOptions, Spec, load_base
from isoflop.tasks.code import parted
from isoflop.tasks.protocol import BOTH, DECODER
from isoflop.tasks.sequences import IGNORED, FromTextToText

ENGLISH = "the cat dog house red runs sleeps small tree bird".split()
GERMAN = "die Katze Hund Haus rot rennt schläft klein Baum Vogel".split()
WORDS = dict(zip(ENGLISH, GERMAN, strict=True))
WINDOW = 48
HEADER = 'def twice(x):\n    """Two times x."""\n'
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def pairs(number: int, seed: int) -> Dataset:
    """Sentences of two to four words, and the same word for word."""
    rng = np.random.default_rng(seed)
    sentences = [list(rng.choice(ENGLISH, rng.integers(2, 5))) for _ in range(number)]
    return Dataset.from_dict(
        {
            "source": [" ".join(words) for words in sentences],
            "target": [" ".join(WORDS[word] for word in words) for words in sentences],
        }
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Of bytes, as our own: an end token that pads too, and nothing added to a text."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    trained.train_from_iterator([" ".join(ENGLISH), " ".join(GERMAN), HEADER] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<|end|>", bos_token="<|end|>")


@pytest.fixture(scope="session")
def bases(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp("bases")
    size = len(tokenizer)
    torch.manual_seed(0)
    both = T5(T5Config(
        vocab_size=size, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=0,
    ))  # fmt: skip
    decoder = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=16, max_position_embeddings=WINDOW, eos_token_id=0, bos_token_id=0,
    ))  # fmt: skip
    for kind, model in ((BOTH, both), (DECODER, decoder)):
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return {kind: load_base(folder / kind) for kind in (BOTH, DECODER)}


def encoded(task: FromTextToText, base: Base, spec: Spec, rows: Dataset) -> list[dict[str, Any]]:
    columns = task.encode(base, spec, rows[:])
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def batch_of(task: FromTextToText, base: Base, spec: Spec, rows: Dataset) -> dict[str, Tensor]:
    return task.collate(base, spec, encoded(task, base, spec, rows))


def made(name: str, base: Base, rows: Dataset) -> tuple[FromTextToText, Spec]:
    task = TASKS[name]
    assert isinstance(task, FromTextToText)
    return task, task.spec(rows, base)


@pytest.mark.parametrize("kind", [BOTH, DECODER])
def test_a_word_for_word_translation_is_learned(bases: dict[str, Base], kind: str) -> None:
    base, train, test = bases[kind], pairs(3000, 0), pairs(64, 1)
    task, spec = made("translation", base, train)
    torch.manual_seed(0)
    model = task.build(base, spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    steps = 200
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    features = encoded(task, base, spec, train)
    for step in range(steps):
        start = step * 64 % 2900
        batch = task.collate(base, spec, features[start : start + 64])
        loss = task.loss(task.logits(model, batch), batch, LossOptions()).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if step % 20 == 0: print(step, loss.item())
    model.eval()
    with torch.no_grad():
        batch = batch_of(task, base, spec, test)
        found = task.predict(model, base, spec, batch)
        del batch["labels"]
    references = task.references(spec, test)
    print(found[:5], references[:5], corpus_chrf(found, [references]))
    assert corpus_chrf(found, [references]).score > 90
