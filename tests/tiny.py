"""Tiny models to adapt: two layers of width 32 and random weights, with tokenizers trained on a few sentences.

The folders are made once in a session.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from isoflop.corpus.bpe import train_bpe

WIDTH, LAYERS, HEADS, POSITIONS = 32, 2, 4, 64
GOOD = ("bright", "kind", "warm", "sweet", "calm", "fine")
BAD = ("dark", "cruel", "cold", "bitter", "harsh", "grim")
PLAIN = ("the", "day", "was", "and", "a", "long", "walk", "by", "river", "home", "we", "saw", "tree", "bird")
END = "<|endoftext|>"


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


@cache
def tiny_bert() -> Path:
    """An encoder."""
    from tokenizers import BertWordPieceTokenizer, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    made = BertWordPieceTokenizer()
    made.train_from_iterator(texts(), 200, show_progress=False)
    ends = [(name, made.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    made.post_processor = processors.BertProcessing(*ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", unk_token="[UNK]",
    )  # fmt: skip
    config = BertConfig(
        vocab_size=made.get_vocab_size(), hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, max_position_embeddings=POSITIONS,
        initializer_range=0.1,
    )  # fmt: skip
    return _written(BertModel, config, tokenizer)


@cache
def tiny_qwen3() -> Path:
    """A decoder with a byte-level tokenizer."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    made = train_bpe(iter(texts()), 400)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END)
    config = Qwen3Config(
        vocab_size=made.get_vocab_size(), hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=4 * POSITIONS, initializer_range=0.1, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=True,
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


def _written(model_class: Any, config: Any, tokenizer: Any) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="isoflop-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
