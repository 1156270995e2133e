"""Drawn shapes, tones, images with words that neither tells alone, and tiny random models for them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Dataset
from PIL import Image, ImageDraw

RATE = 16_000
SIDE = 16
SHAPES = ("circle", "cross", "square")


def drawn(shape: str, rng: np.random.Generator, colour: Any = 255, mode: str = "L") -> Image.Image:
    """An outline somewhere in a small picture."""
    image = Image.new(mode, (SIDE, SIDE))
    x, y = (int(n) for n in rng.integers(1, 6, 2))
    box = (x, y, x + 9, y + 9)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse(box, outline=colour, width=2)
    elif shape == "square":
        draw.rectangle(box, outline=colour, width=2)
    else:
        draw.line(box, fill=colour, width=2)
        draw.line((x, y + 9, x + 9, y), fill=colour, width=2)
    return image


def shapes(n: int, folder: Path, seed: int = 0) -> Dataset:
    """Pictures as files."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    labels = [SHAPES[i % len(SHAPES)] for i in range(n)]
    paths = [str(folder / f"{i}.png") for i in range(n)]
    for path, label in zip(paths, labels, strict=True):
        drawn(label, rng).save(path)
    return Dataset.from_dict({"image": paths, "label": labels})


WORDS = {"low": 300.0, "high": 1500.0}  # Hz


def tones(n: int, folder: Path, *, rate: int = RATE, seconds: float = 0.5) -> Dataset:
    """Words as tones of some loudness and phase, in files of two channels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    texts = [list(WORDS)[i % 2] for i in range(n)]
    paths = [str(folder / f"{i}.wav") for i in range(n)]
    time = np.arange(round(seconds * rate)) / rate
    for path, text in zip(paths, texts, strict=True):
        tone = rng.uniform(0.1, 0.5) * np.sin(2 * np.pi * (WORDS[text] * time + rng.random()))
        soundfile.write(path, np.stack([tone, tone], axis=1), rate)
    return Dataset.from_dict({"audio": paths, "text": texts})


def coloured(n: int, seed: int) -> Dataset:
    """A label that neither the colour nor the word tells: whether they go together."""
    rng = np.random.default_rng(seed)
    warm, says_warm = rng.integers(0, 2, (2, n)).astype(bool)
    images = []
    for i, is_warm in enumerate(warm):
        image = drawn(SHAPES[i % 3], rng, (220, 60, 20) if is_warm else (30, 80, 230), "RGB")
        images.append({"path": None, "bytes": png(image)})
    texts = [f"a {'warm' if says else 'cold'} thing" for says in says_warm]
    return Dataset.from_dict(
        {"image": images, "text": texts, "label": np.where(warm == says_warm, "fits", "odd").tolist()}
    )


def tiny_whisper(folder: Path, *, seconds: int = 2, written: int = 16, special: Sequence[str] = ()) -> Path:
    """A tiny Whisper of random weights that reads so many seconds and writes so many tokens, of bytes."""
    from tokenizers import pre_tokenizers
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    end, start, silent = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*letters, end, start, *special, silent])}
    tokenizer = WhisperTokenizer(
        vocab=vocab, merges=[], pad_token=end, additional_special_tokens=[start, *special, silent]
    )
    config = WhisperConfig(
        vocab_size=len(vocab), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16,
        max_source_positions=50 * seconds, max_target_positions=written, decoder_start_token_id=vocab[start],
        bos_token_id=vocab[end], eos_token_id=vocab[end], pad_token_id=vocab[end], dropout=0.0,
        begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        is_multilingual=False, decoder_start_token_id=vocab[start], eos_token_id=vocab[end],
        pad_token_id=vocab[end], no_timestamps_token_id=vocab[silent], max_length=written,
    )  # fmt: skip
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=seconds)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def tiny_words(folder: Path) -> Path:
    """A tiny BERT of random weights with a tokenizer of words, those of `coloured`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocab = {"[PAD]": 0, "[UNK]": 1, "warm": 2, "cold": 3, "a": 4, "thing": 5}
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_max_length=8
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=6, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=8,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
