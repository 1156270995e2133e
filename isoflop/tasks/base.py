"""A model folder, as tasks see it before it is adapted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.engines import ONNX
from isoflop.errors import AdaptError
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER, SPEECH, VISION, Base

if TYPE_CHECKING:
    from torch import nn

LONGEST = 512  # tokens of an input, where the model could read more
UNLIMITED = 1 << 20  # transformers says 1e30 where a tokenizer knows no limit


def load_base(folder: Path, *, max_length: int | None = None) -> Base:
    """What a folder's files say of a model. Raises AdaptError where it is none, or no task knows its kind."""
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.exists():
        raise AdaptError(f"{folder} has no config.json", hint="name a folder of a model of transformers")
    try:
        raw = json.loads(path.read_text())
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise AdaptError(
            f"{path} is no configuration of a model: {str(error).splitlines()[0]}",
            hint="restore the file, or update transformers",
        ) from None
    kind = kind_of(raw, folder)
    return Base(folder, config, kind, _processor(folder, kind), _longest(folder, config, kind, max_length))


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds more than a configuration."""
    return any(any(folder.glob(names)) for names in ("*.safetensors", "pytorch_model*.bin"))


def opened(auto_class: str, folder: Path, **options: Any) -> nn.Module:
    """The folder's model by a class of transformers, in float32; of random weights where the folder has none.

    Weights of a shape that the options change, those of a head, are random too. Raises AdaptError for a
    folder that has a graph in the place of the weights.
    """
    import torch
    import transformers

    if (folder / ONNX).is_file():
        raise AdaptError(
            f"{folder} is an export, which cannot be trained", hint="name the model that it was made of"
        )
    cls = getattr(transformers, auto_class)
    if has_weights(folder):
        model: nn.Module = cls.from_pretrained(
            folder, dtype=torch.float32, ignore_mismatched_sizes=True, **options
        )
        return model
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    fresh: nn.Module = cls.from_config(config, dtype=torch.float32)
    return fresh


def kind_of(raw: dict[str, Any], folder: Path) -> str:
    """By the registries of transformers: what a model type can be opened as."""
    from transformers.models.auto import modeling_auto as auto

    type = raw.get("model_type", "")
    if type in auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return SPEECH
    if type in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return VISION
    if type in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return BOTH
    masked = type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if masked and not raw.get("is_decoder"):
        return ENCODER
    if type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return DECODER
    raise AdaptError(
        f"{folder} is of the model type {type!r}, which no task knows",
        hint="name a text, image or speech model of transformers",
    )


def _processor(folder: Path, kind: str) -> Any:
    """Tokenizer, image processor, or both of audio; a decoder's pad token is its end where it has none.

    Images go through Pillow, with torchvision installed or not: the same pixels everywhere.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    try:
        if kind == VISION:
            return AutoImageProcessor.from_pretrained(folder, backend="pil")
        if kind == SPEECH:
            return AutoProcessor.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise AdaptError(
            f"{folder} has no tokenizer or processor that opens: {str(error).splitlines()[0]}",
            hint="put the files of its tokenizer, or its preprocessor_config.json, beside the weights",
        ) from None
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise AdaptError(
                f"the tokenizer of {folder} names neither a pad token nor an end token",
                hint="name its pad_token in tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _longest(folder: Path, config: Any, kind: str, asked: int | None) -> int:
    """Tokens of an input: what was asked for, within what the model can read."""
    if kind in (VISION, SPEECH):
        return 0
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    most = found if found and found < UNLIMITED else UNLIMITED
    if asked is None:
        return int(min(most, LONGEST))
    if not 1 <= asked <= most:
        raise AdaptError(
            f"inputs of {asked} tokens do not fit {folder}, which reads up to {most}",
            hint="give a --max-length within that",
        )
    return asked
