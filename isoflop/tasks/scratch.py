"""Image models that begin with random weights: folders of a configuration and an image processor alone.

To add one, write a function of the images' size and channels and a line in SCRATCH.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import AdaptError
from isoflop.examples.media import undecoded
from isoflop.tasks.media import image_of, read_or_none

if TYPE_CHECKING:
    from datasets import Dataset

Scratch = tuple[int, dict[str, Any]]  # pixels of a side, configuration

MIDDLE = 0.5  # mean and standard deviation of pixels in [0, 1]: they become numbers in [-1, 1]
WIDTH = 96  # of a transformer
GRID = 8  # patches of a side: few, for CPUs
SMALL = 64  # pixels of a side: fewer are doubled for convolutions
LOOKED_AT = 200  # images
LARGEST = 224  # pixels of a side; larger images are made smaller


def vit(image_size: int, channels: int) -> Scratch:
    """Six narrow layers (Dosovitskiy et al., 2010.11929) on 8 x 8 patches at most.

    Weights begin at 1 / sqrt(width), with which a layer keeps the size of what it is given: the usual 0.02 is
    for widths of 768 and more.
    """
    patch = math.ceil(image_size / GRID)
    side = image_size - image_size % patch
    return side, {
        "model_type": "vit", "image_size": side, "patch_size": patch, "num_channels": channels,
        "hidden_size": WIDTH, "num_hidden_layers": 6, "num_attention_heads": 3,
        "intermediate_size": 2 * WIDTH, "initializer_range": WIDTH**-0.5, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip


def convnet(image_size: int, channels: int) -> Scratch:
    """A narrow ResNet of three basic blocks (He et al., 1512.03385).

    Its stem divides a side by four, so that small images are read at twice their size.
    """
    return image_size * (2 if image_size < SMALL else 1), {
        "model_type": "resnet", "num_channels": channels, "embedding_size": 32, "hidden_sizes": [32, 64, 128],
        "depths": [1, 1, 1], "layer_type": "basic", "downsample_in_first_stage": False,
    }  # fmt: skip


SCRATCH: Mapping[str, Callable[[int, int], Scratch]] = {"vit": vit, "convnet": convnet}


def scratch(name: str, folder: Path, *, image_size: int, channels: int, labels: int) -> Path:
    """A base folder without weights for square images of that many pixels a side and channels.

    Raises AdaptError for a name that SCRATCH has not.
    """
    if name not in SCRATCH:
        raise AdaptError(f"{name!r} is no model to begin with", hint=f"one of: {', '.join(SCRATCH)}")
    side, config = SCRATCH[name](image_size, channels)
    config |= {"id2label": {n: str(n) for n in range(labels)}}
    processor = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side},
        "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2,
        "rescale_factor": 1 / 255, "image_mean": [MIDDLE] * channels, "image_std": [MIDDLE] * channels,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    return folder


def measured(rows: Dataset) -> dict[str, int]:
    """What `scratch` asks of the rows of an image task: pixels of a side, channels, and number of labels.

    The side is the median of the longer ones, at most LARGEST; images are grey if all that are looked at are.
    """
    some = undecoded(rows.select(range(min(len(rows), LOOKED_AT))))["image"]
    found = [image for value in some if (image := read_or_none(value, lambda v: image_of(v, 3))) is not None]
    if not found:
        raise AdaptError("none of the first images can be read", hint="restore the files")
    side = int(np.median([max(image.shape[:2]) for image in found]))
    grey = all((image == image[..., :1]).all() for image in found)
    return {
        "image_size": min(side, LARGEST), "channels": 1 if grey else 3, "labels": len(set(rows["label"]))
    }  # fmt: skip
