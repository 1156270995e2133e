"""GGUF, llama.cpp's one file of weights and tokenizer.

Tensor names and their types are those of the `gguf` package; llama.cpp itself rounds the weights, 32 of a row
in a block with its scale, in the K types 256. llama.cpp reads Qwen3 with the rotary halves as transformers
has them, so nothing is permuted. The tokenizer is byte-level BPE with GPT-2's pattern, and says so:
llama.cpp's converter would look its hash up in a list and refuse it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from isoflop.engines import llamacpp
from isoflop.errors import ProjectError
from isoflop.gpt import EPS, GPT

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

ARCHITECTURE = "qwen3"
# Most bytes first; what llama.cpp calls a file of it, and the type of rows that are no whole blocks.
TYPES = {
    "f32": ("ALL_F32", ""), "f16": ("MOSTLY_F16", ""), "q8_0": ("MOSTLY_Q8_0", "f16"),
    "q6_k": ("MOSTLY_Q6_K", "q8_0"), "q5_1": ("MOSTLY_Q5_1", "f16"), "q5_k": ("MOSTLY_Q5_K_S", "q5_1"),
    "q5_0": ("MOSTLY_Q5_0", "f16"), "q4_1": ("MOSTLY_Q4_1", "f16"), "q4_k": ("MOSTLY_Q4_K_S", "q5_0"),
    "iq4_nl": ("MOSTLY_IQ4_NL", "f16"), "q4_0": ("MOSTLY_Q4_0", "f16"),
}  # fmt: skip
FLOATS = ("f32", "f16")
GPT2_PATTERN = "gpt-2"  # llama.cpp's name for it

Kind = str | Mapping[str, str]  # one of TYPES, for all matrices or by name
# The name of a matrix, its values and a type: how a file holds them.
Rounder = Callable[[str, NDArray[np.float32], str], tuple[NDArray[Any], "GGMLQuantizationType"]]


def to_nearest(
    name: str, weight: NDArray[np.float32], kind: str
) -> tuple[NDArray[Any], GGMLQuantizationType]:
    """Each weight for itself, whatever its matrix is fed."""
    return stored(weight, kind)


def write_gguf(
    model: GPT, tokenizer: Tokenizer, end_of_text: int, path: Path, *, kind: Kind,
    rounder: Rounder = to_nearest,
) -> None:  # fmt: skip
    """Write `model` with its matrices as `kind` says; vectors stay float32.

    Where rows are no whole blocks of a type the matrix has the next larger one that fits. Raises ProjectError
    without the packages.
    """
    gguf = _package()
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    try:
        most = kind if isinstance(kind, str) else Counter(kind.values()).most_common(1)[0][0]
        _describe(writer, model, gguf.LlamaFileType[TYPES[most][0]])
        _add_tokenizer(writer, tokenizer, end_of_text, model.config.vocab_size)
        for name, values, stored in _tensors(model, kind, rounder):
            writer.add_tensor(name, values, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_weights(model: GPT, path: Path) -> None:
    """Load the weights of a GGUF file, rounded as they are there, into a model of the same shape."""
    gguf = _package()
    names = _names(model)
    found = {
        names[tensor.name]: torch.from_numpy(restored(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(path).tensors
    }
    if model.config.tied:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    model.load_state_dict(found)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ProjectError(
            "the package gguf is not installed, which writes its files", hint="pip install 'isoflop[gguf]'"
        ) from None
    return gguf


def _names(model: GPT) -> dict[str, str]:
    """Each tensor's name in a file, and in the model; a tied head is the table."""
    gguf = _package()
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, model.config.n_layers)
    names = [n for n in model.state_dict() if not (model.config.tied and n == "lm_head.weight")]
    return {mapping.get_name(name, try_suffixes=(".weight",)): name for name in names}


def _tensors(
    model: GPT, kind: Kind, rounder: Rounder
) -> Iterator[tuple[str, NDArray[Any], GGMLQuantizationType]]:
    """Name, values as stored, and type of each."""
    gguf = _package()
    state = model.state_dict()
    for there, here in _names(model).items():
        weight = state[here].detach().float().cpu().numpy()
        if weight.ndim == 2:
            name = kind if isinstance(kind, str) else kind[here]
            yield there, *rounder(here, weight, name)
        else:
            floats = gguf.GGMLQuantizationType.F32
            yield there, gguf.quants.quantize(weight, floats), floats


def stored(
    weight: NDArray[np.float32], kind: str, importance: NDArray[np.float32] | None = None
) -> tuple[NDArray[Any], GGMLQuantizationType]:
    """A matrix as a file holds it, and its type: `kind`, or the next larger one whose blocks fit its rows."""
    gguf = _package()
    types = gguf.GGMLQuantizationType
    while weight.shape[1] % gguf.GGML_QUANT_SIZES[types[kind.upper()]][0]:
        kind = TYPES[kind][1]
    if kind in FLOATS:
        return gguf.quants.quantize(weight, types[kind.upper()]), types[kind.upper()]
    return llamacpp.rounded(weight, types[kind.upper()], importance), types[kind.upper()]


def restored(values: NDArray[Any], type: GGMLQuantizationType) -> NDArray[np.float32]:
    """The matrix that `stored` stands for."""
    gguf = _package()
    if type in llamacpp.BLOCKS:
        weights, size = gguf.GGML_QUANT_SIZES[type]
        return llamacpp.restored(values, type, values.shape[1] // size * weights)
    out: NDArray[np.float32] = gguf.quants.dequantize(values, type).astype(np.float32)
    return out


def _describe(writer: GGUFWriter, model: GPT, file_type: int) -> None:
    """The shape, as llama.cpp's converter writes it."""
    config = model.config
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, end_of_text: int, vocab_size: int) -> None:
    """Tokens by id, with merges. The model may have rows for more tokens than there are: those are unused."""
    from gguf import TokenType

    own = json.loads(tokenizer.to_str())
    special = {added["id"]: added["content"] for added in own["added_tokens"]}
    plain = {i: token for token, i in own["model"]["vocab"].items()}
    tokens, types = [], []
    for i in range(vocab_size):
        tokens.append(special.get(i) or plain.get(i) or f"[UNUSED{i}]")
        types.append(
            TokenType.CONTROL if i in special else TokenType.NORMAL if i in plain else TokenType.UNUSED
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(GPT2_PATTERN)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in own["model"]["merges"]])
    writer.add_bos_token_id(end_of_text)
    writer.add_eos_token_id(end_of_text)
    writer.add_add_bos_token(False)
