"""llama.cpp, by the C functions of the library that xllamacpp ships prebuilt.

xllamacpp's own Python side is a server, which gives no logits of a prompt. What is called here is `llama.h`,
of which only what has been the same for years is relied upon: its functions, the batch, and that the
parameters of a context begin with three sizes, whose defaults are checked before they are changed.

Shapes: t time, v vocabulary.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_int64, c_size_t, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isoflop.engines import check_room
from isoflop.errors import CorruptError, ProjectError

HINT = "pip install 'isoflop[gguf]'"
TABLE, HEAD = "token_embd.weight", "output.weight"  # names in the file
BLOCKS = {  # types whose weights lie in blocks with their scale: ggml's number, and name of its functions
    2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 12: "q4_K", 13: "q5_K", 14: "q6_K", 20: "iq4_nl",
}  # fmt: skip
SIZES = (512, 2048, 512)  # llama_context_default_params(): n_ctx, n_batch, n_ubatch


class _Parameters(ctypes.Structure):
    """Parameters of a model or a context, larger than either: only what made them knows the rest."""

    _fields_ = (("sizes", ctypes.c_uint32 * 3), ("rest", ctypes.c_char * 1012))


class _Batch(ctypes.Structure):
    """llama_batch: of each token its id, position, sequence, and whether its logits are wanted."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


class _Reading(ctypes.Structure):
    """gguf_init_params: whether to leave the tensors in the file, and where to put them."""

    _fields_ = (("no_alloc", c_bool), ("context", c_void_p))


_Log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {  # name: result, arguments
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p],
    ),
    "gguf_init_from_file": (c_void_p, [c_char_p, _Reading]),
    "gguf_find_key": (c_int64, [c_void_p, c_char_p]),
    "gguf_get_val_str": (c_char_p, [c_void_p, c_int64]),
    "gguf_get_val_u32": (ctypes.c_uint32, [c_void_p, c_int64]),
    "gguf_free": (None, [c_void_p]),
    **{f"dequantize_row_{name}": (None, [c_void_p, c_void_p, c_int64]) for name in BLOCKS.values()},
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_Log, c_void_p]),
    "llama_model_default_params": (_Parameters, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _Parameters]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_context_default_params": (_Parameters, []),
    "llama_init_from_model": (c_void_p, [c_void_p, _Parameters]),
    "llama_free": (None, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_batch_init": (_Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (c_int32, [c_void_p, _Batch]),
    "llama_get_logits": (c_void_p, [c_void_p]),
    "llama_tokenize": (
        c_int32,
        [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool],
    ),
}


_silent = _Log(lambda level, text, data: None)  # where llama.cpp's lines about itself go


@lru_cache
def _library() -> Any:
    """llama.cpp's functions. Raises ProjectError when they are not there, or not as they were."""
    try:
        from xllamacpp import xllamacpp
    except ImportError:
        raise ProjectError("llama.cpp is not installed", hint=HINT) from None
    library = ctypes.CDLL(xllamacpp.__file__)
    try:
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise _changed(str(error)) from None
    library.llama_log_set(_silent, None)
    library.llama_backend_init()
    found = tuple(library.llama_context_default_params().sizes)
    if found != SIZES:
        raise _changed(f"its parameters begin with {found}")
    return library


def _changed(what: str) -> ProjectError:
    return ProjectError(
        f"the installed llama.cpp is not one that this version knows: {what}",
        hint="install the version of xllamacpp that isoflop[gguf] names",
    )


def _read_for_a_token(path: Path) -> int:
    """Bytes of all tensors, without the input embedding unless it is the head as well."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes[TABLE] if HEAD in sizes else 0)


class Described(NamedTuple):
    """What a file says of its model before it is loaded."""

    context: int  # that it was trained with
    pooling: int | None  # llama.cpp's number of how token vectors become one of the text


def described(path: Path) -> Described:
    """Raises ProjectError when llama.cpp is not installed, CorruptError when the file is none of its."""
    library = _library()
    file = library.gguf_init_from_file(os.fsencode(path), _Reading(no_alloc=True))
    if not file:
        raise CorruptError(f"llama.cpp cannot open {path}", hint="export it again")
    try:
        named = library.gguf_find_key(file, b"general.architecture")
        family = library.gguf_get_val_str(file, named) if named >= 0 else b""
        keys = (library.gguf_find_key(file, family + end) for end in (b".context_length", b".pooling_type"))
        context, pooling = (library.gguf_get_val_u32(file, key) if key >= 0 else None for key in keys)
    finally:
        library.gguf_free(file)
    if context is None:
        raise CorruptError(f"{path} does not say the context of its model", hint="export it again")
    return Described(context, pooling)


def rounded(
    weight_rc: NDArray[np.float32], type_number: int, importance_c: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """A matrix in one of llama.cpp's block types, rounded by llama.cpp: rows of bytes.

    With the importance of each column it lowers the error of the layer's output, not that of the weights.
    """
    library, (rows, columns) = _library(), weight_rc.shape
    source = np.ascontiguousarray(weight_rc, np.float32)
    target = np.empty((rows, library.ggml_row_size(type_number, columns)), np.uint8)
    weights = None
    if importance_c is not None:
        importance = np.ascontiguousarray(importance_c, np.float32)
        weights = importance.ctypes.data
    library.ggml_quantize_chunk(
        type_number, source.ctypes.data, target.ctypes.data, 0, rows, columns, weights
    )
    return target


def restored(rows: NDArray[np.uint8], type_number: int, columns: int) -> NDArray[np.float32]:
    """The matrix that rows of one of BLOCKS stand for, by llama.cpp."""
    source, target = np.ascontiguousarray(rows), np.empty((len(rows), columns), np.float32)
    restore = getattr(_library(), f"dequantize_row_{BLOCKS[type_number]}")
    restore(source.ctypes.data, target.ctypes.data, target.size)
    return target


class LlamaCpp:
    """A GGUF file in llama.cpp, on the CPU, with a context as long as the model was trained with.

    Its cache holds keys and values in 16 bits. Raises ProjectError when llama.cpp is not installed,
    CorruptError when it cannot open the file.
    """

    name = "llama.cpp"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._library = library = _library()
        self._context = self._model = None
        self._model = library.llama_model_load_from_file(
            os.fsencode(path), library.llama_model_default_params()
        )
        if not self._model:
            raise CorruptError(f"llama.cpp cannot open {path}", hint="export it again")
        self._vocabulary = library.llama_model_get_vocab(self._model)
        self.vocab_size = library.llama_vocab_n_tokens(self._vocabulary)
        self.context = library.llama_model_n_ctx_train(self._model)
        self.weight_bytes = _read_for_a_token(path)
        parameters = library.llama_context_default_params()
        parameters.sizes[:] = [self.context] * 3
        self._context = library.llama_init_from_model(self._model, parameters)
        if not self._context:
            self.close()
            raise CorruptError(
                f"llama.cpp cannot make a context of {self.context} tokens for {path}",
                hint="look for a lack of memory, or export it again",
            )
        library.llama_set_n_threads(self._context, threads, threads)
        self._batch = batch = library.llama_batch_init(self.context, 0, 1)
        for i in range(self.context):
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        self._tokens, self._positions, self._wanted = (  # of the batch; through ctypes a token costs more
            np.ctypeslib.as_array(field, (self.context,)) for field in (batch.token, batch.pos, batch.logits)
        )
        self._logits: dict[tuple[int, int], NDArray[np.float32]] = {}  # where llama.cpp puts them; by rows
        self._fed = 0

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        ids = (c_int32 * max(1, len(data)))()  # a token has at least one byte
        n = self._library.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), False, False)
        assert n >= 0
        return list(ids[:n])

    def feed(self, ids: Sequence[int], *, every: bool) -> NDArray[np.float32]:
        """Raises ProjectError when the context is full or llama.cpp cannot compute."""
        n, batch = len(ids), self._batch
        check_room(self._fed + n, self.context)
        batch.n_tokens = n
        self._tokens[:n], self._positions[:n] = ids, range(self._fed, self._fed + n)
        self._wanted[:n] = every
        self._wanted[n - 1] = True
        if code := self._library.llama_decode(self._context, batch):
            raise ProjectError(f"llama.cpp stopped with code {code}", hint="look for a lack of memory")
        self._fed += n
        place = self._library.llama_get_logits(self._context), n if every else 1
        if place not in self._logits:
            size = place[1] * self.vocab_size
            whole = np.frombuffer((c_float * size).from_address(place[0]), np.float32)
            self._logits[place] = whole.reshape(-1, self.vocab_size)
        return self._logits[place].copy()

    def reset(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        self._fed = 0

    def close(self) -> None:
        """Give the memory back."""
        if self._context:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = None
