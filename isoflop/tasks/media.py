"""Pictures and sounds: as rows hold them, as features keep them, and as models take them.

A row's value is a path, what an undecoded `Image` or `Audio` column of datasets holds (`{"path",
"bytes"}`), a decoded sound (`{"array", "sampling_rate"}`), a Pillow image or an array. Features keep bytes,
which Arrow reads without making a Python number of each sample: `pixels` with its `shape`, or `sound` in
16-bit samples. A file that cannot be read becomes a blank one, marked `unreadable`, so that rows and
predictions stay in step.

Shapes: b examples of a batch, h, w, c height, width and channels of an image, s samples of a sound.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import AdaptError

if TYPE_CHECKING:
    from torch import Tensor

UNREADABLE = 0.05  # share of the training files that may be; more is a mistake, not a flaw of the data
LOUDEST = 32767  # of a sample in 16 bits; 1.0 as a float
SHOWN = 3  # names of unreadable files in a sentence


def image_of(value: Any, channels: int) -> NDArray[np.uint8]:
    """(h, w, c), grey where the model takes one channel. Raises OSError or ValueError for what is none."""
    from PIL import Image

    if isinstance(value, Image.Image):
        opened = value
    elif isinstance(value, np.ndarray):
        opened = Image.fromarray(value.squeeze(-1) if value.shape[2:] == (1,) else value)
    else:
        opened = Image.open(_file(value))
    found = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
    return found[..., None] if found.ndim == 2 else found


def sound_of(value: Any, rate: int) -> NDArray[np.float32]:
    """(s,), one channel at `rate` samples a second. Raises OSError or ValueError for what is none."""
    import soundfile

    if isinstance(value, Mapping) and value.get("array") is not None:
        samples, found = np.asarray(value["array"], np.float32), int(value["sampling_rate"])
    else:
        try:
            samples, found = soundfile.read(_file(value), dtype="float32")
        except soundfile.SoundFileError as error:
            raise OSError(str(error)) from None
    mono = np.asarray(samples.mean(-1) if samples.ndim == 2 else samples, np.float32)
    if not mono.size:
        raise ValueError("it has no samples")
    return resampled(mono, Fraction(rate, found))


def resampled(sound: NDArray[np.float32], ratio: Fraction) -> NDArray[np.float32]:
    """`ratio` times as many samples, by a polyphase filter."""
    from scipy.signal import resample_poly

    if ratio == 1:
        return sound
    return np.asarray(resample_poly(sound, ratio.numerator, ratio.denominator), np.float32)


def to_bytes(sound: NDArray[np.float32]) -> bytes:
    """In 16 bits; louder samples are clipped."""
    return np.asarray(np.round(np.clip(sound, -1, 1) * LOUDEST), np.int16).tobytes()


def from_bytes(sound: bytes) -> NDArray[np.float32]:
    return np.frombuffer(sound, np.int16).astype(np.float32) / np.float32(LOUDEST)


def surveyed(
    values: Iterable[Any], read: Callable[[Any], NDArray[Any]]
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Shapes of what can be read, and names of what cannot.

    Raises AdaptError where that is more than the share UNREADABLE.
    """
    shapes: list[tuple[int, ...]] = []
    bad: list[str] = []
    for number, value in enumerate(values):
        found = read_or_none(value, read)
        if found is None:
            bad.append(_name(value, number))
        else:
            shapes.append(found.shape)
    total = len(shapes) + len(bad)
    if len(bad) > UNREADABLE * total:
        shown = ", ".join(bad[:SHOWN]) + (" ..." if len(bad) > SHOWN else "")
        raise AdaptError(
            f"{len(bad)} of the {total} training files cannot be read: {shown}",
            hint="restore them, or leave them out of the data",
        )
    return shapes, bad


def read_or_none(value: Any, read: Callable[[Any], NDArray[Any]]) -> NDArray[Any] | None:
    try:
        return read(value)
    except (OSError, ValueError, SyntaxError):  # Pillow says SyntaxError of a broken PNG
        return None


def encode_images(processor: Any, values: Sequence[Any], channels: int) -> dict[str, list[Any]]:
    """Images of the size that the model takes, in whole numbers up to 255."""
    found = [read_or_none(value, lambda v: image_of(v, channels)) for value in values]
    blank = np.zeros((1, 1, channels), np.uint8)
    sized = processor(
        [blank if image is None else image for image in found], do_rescale=False, do_normalize=False,
        input_data_format="channels_last",
    )["pixel_values"]  # fmt: skip
    made = [np.ascontiguousarray(np.moveaxis(np.asarray(image, np.uint8), 0, -1)) for image in sized]
    return {
        "pixels": [image.tobytes() for image in made], "shape": [list(image.shape) for image in made],
        "unreadable": [image is None for image in found],
    }  # fmt: skip


def pixel_values(processor: Any, features: Sequence[Mapping[str, Any]]) -> Tensor:
    """(b, c, h, w) float32, scaled and normalised as the processor says; channels lie last in memory."""
    import torch

    joined = b"".join(f["pixels"] for f in features)
    pixels = np.frombuffer(joined, np.uint8).reshape(len(features), *features[0]["shape"]).astype(np.float32)
    if processor.do_rescale:
        pixels *= processor.rescale_factor
    if processor.do_normalize:
        pixels -= np.asarray(processor.image_mean, np.float32)
        pixels /= np.asarray(processor.image_std, np.float32)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _file(value: Any) -> Any:
    """A path, or a file in memory."""
    if isinstance(value, Mapping):
        value = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ValueError("the row names no file")
    return value


def _name(value: Any, number: int) -> str:
    found = value.get("path") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) else f"example {number + 1}"
