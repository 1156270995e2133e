"""A Whisper model of CTranslate2 as a folder of transformers.

    python benchmarks/whisper_ctranslate2.py MODEL FOLDER

MODEL holds model.bin, tokenizer.json and config.json as CTranslate2 writes them. Its model.bin is, in
little endian: the version (uint32), the name of its kind (a string: uint16 length, then as many bytes, the
last one zero), the kind's revision and the number of variables (uint32 each); of each variable its name,
its rank (uint8), its sizes (uint32 each), its type (uint8, see TYPES), its length (uint32) and its bytes;
then the number of aliases (uint32), and of each its name and the name of what it stands for. Weights of 8
bits are divided by the `_scale` of each row (version 6, the only one read here).
"""

from __future__ import annotations

import argparse
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

VERSION = 6
KIND = "WhisperSpec"
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by number
END, START, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
PARTS = {  # of a layer of CTranslate2: the parts of transformers that are stacked in it
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
LEAVES = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def variables(path: Path) -> dict[str, NDArray[Any]]:
    """Every variable by its name, aliases too; those of 8 bits are scaled.

    Raises ValueError for another file.
    """
    with path.open("rb") as file:
        version, kind, _, count = _number(file, "I"), _string(file), _number(file, "I"), _number(file, "I")
        if (version, kind) != (VERSION, KIND):
            raise ValueError(f"{path} is {kind} in version {version}: this reads {KIND} in version {VERSION}")
        stored = dict(_variable(file) for _ in range(count))
        for _ in range(_number(file, "I")):
            name = _string(file)
            stored[name] = stored[_string(file)]
    return {
        name: array / stored[f"{name}_scale"][..., None] if f"{name}_scale" in stored else array
        for name, array in stored.items()
        if not name.endswith("_scale")
    }


def _number(file: BinaryIO, type: str) -> int:
    return int(struct.unpack(f"<{type}", file.read(struct.calcsize(type)))[0])


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H"))[:-1].decode()


def _variable(file: BinaryIO) -> tuple[str, NDArray[Any]]:
    name, rank = _string(file), _number(file, "B")
    shape = [_number(file, "I") for _ in range(rank)]
    type, length = _number(file, "B"), _number(file, "I")
    return name, np.frombuffer(file.read(length), TYPES[type]).reshape(shape)


def weights(found: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Under the names that transformers gives them, in float32."""
    made = {}
    for side in ("encoder", "decoder"):
        made[f"{side}.embed_positions.weight"] = found[f"{side}/position_encodings/encodings"]
        for ours, theirs in LEAVES.items():
            if ours in ("gamma", "beta"):
                made[f"{side}.layer_norm.{theirs}"] = found[f"{side}/layer_norm/{ours}"]
            else:
                made |= {f"encoder.conv{n}.{theirs}": found[f"encoder/conv{n}/{ours}"] for n in (1, 2)}
        for number in range(layers(found, side)):
            made |= _layer(found, f"{side}/layer_{number}/", f"{side}.layers.{number}.")
    made["decoder.embed_tokens.weight"] = found["decoder/embeddings/weight"]
    return {
        f"model.{name}": torch.from_numpy(np.ascontiguousarray(array, np.float32))
        for name, array in made.items()
    }


def _layer(found: Mapping[str, NDArray[Any]], theirs: str, ours: str) -> dict[str, NDArray[Any]]:
    made = {}
    for part, names in PARTS.items():
        for leaf, ending in LEAVES.items():
            stacked = found.get(f"{theirs}{part}/{leaf}")
            if stacked is None:
                continue
            for name, array in zip(names, np.split(stacked, len(names)), strict=True):
                if not (name.endswith("k_proj") and ending == "bias"):  # Whisper's keys have none
                    made[f"{ours}{name}.{ending}"] = array
    return made


def layers(found: Mapping[str, NDArray[Any]], side: str) -> int:
    """Of the encoder or the decoder."""
    found_at = [re.match(rf"{side}/layer_(\d+)/", name) for name in found]
    return 1 + max(int(at[1]) for at in found_at if at)


def config_of(found: Mapping[str, NDArray[Any]], special: Mapping[str, int]) -> WhisperConfig:
    """Sizes are read off the weights; ids off the tokenizer."""
    vocabulary, width = found["decoder/embeddings/weight"].shape
    sizes = {}
    for side in ("encoder", "decoder"):
        sizes[f"{side}_layers"] = layers(found, side)
        sizes[f"{side}_attention_heads"] = int(found[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = len(found[f"{side}/layer_0/ffn/linear_0/weight"])
    return WhisperConfig(
        vocab_size=vocabulary, d_model=width, num_mel_bins=found["encoder/conv1/weight"].shape[1],
        max_source_positions=len(found["encoder/position_encodings/encodings"]),
        max_target_positions=len(found["decoder/position_encodings/encodings"]),
        decoder_start_token_id=special[START], bos_token_id=special[END], eos_token_id=special[END],
        pad_token_id=special[END], **sizes,
    )  # fmt: skip


def convert(source: Path, folder: Path) -> None:
    """Writes weights, configurations, tokenizer and feature extractor, for a model of English alone."""
    found = variables(source / "model.bin")
    written = json.loads((source / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in written["added_tokens"]}
    config = config_of(found, special)
    model = WhisperForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(weights(found), strict=False)
    if missing != ["proj_out.weight"] or unexpected:  # it is the embedding's
        raise ValueError(f"{source} lacks {missing} and has {unexpected} that no Whisper model has")
    model.tie_weights()
    asked = json.loads((source / "config.json").read_text())
    model.generation_config = GenerationConfig(
        is_multilingual=False, decoder_start_token_id=special[START], bos_token_id=special[END],
        eos_token_id=special[END], pad_token_id=special[END], no_timestamps_token_id=special[NO_TIMESTAMPS],
        max_length=config.max_target_positions, suppress_tokens=asked["suppress_ids"],
        begin_suppress_tokens=asked["suppress_ids_begin"], return_timestamps=False,
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer = WhisperTokenizer.from_pretrained(
        str(source), unk_token=END, bos_token=END, eos_token=END, pad_token=END
    )
    WhisperProcessor(WhisperFeatureExtractor(feature_size=config.num_mel_bins), tokenizer).save_pretrained(
        folder
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    convert(given.model, given.folder)
    print(f"{given.folder}")


if __name__ == "__main__":
    main()
