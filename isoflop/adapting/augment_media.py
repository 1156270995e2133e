"""Images and sounds changed as they are in life, with their labels unchanged.

IMAGES change (h, w, c) uint8, SOUNDS change (s,) float32, each with a generator of random numbers; an image
keeps its shape. `augmented` applies them by name to the features of a batch before it is collated. To add
one, write its function and a line in IMAGES or SOUNDS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.tasks.media import from_bytes, resampled, to_bytes

Image = NDArray[np.uint8]
Sound = NDArray[np.float32]

SHIFT = 1 / 14  # of an image's side: how far a crop moves it (2 of 28 pixels, 4 of 56)
HOLE = 0.5  # of an image's side: the square that is cut out, as 16 of the 32 pixels of CIFAR-10
SPEEDS = (90, 110)  # percent, both included
SNR_DB = (5.0, 20.0)  # of added noise


def flip(image: Image, rng: np.random.Generator) -> Image:
    """Left for right, every second time."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def crop(image: Image, rng: np.random.Generator) -> Image:
    """A window of the image's size somewhere in the image with a black edge around it."""
    height, width = image.shape[:2]
    y, x = round(SHIFT * height), round(SHIFT * width)
    wide = np.pad(image, ((y, y), (x, x), (0, 0)))
    top, left = rng.integers(2 * y + 1), rng.integers(2 * x + 1)
    return wide[top : top + height, left : left + width]


def cutout(image: Image, rng: np.random.Generator) -> Image:
    """A black square around any pixel, cut off at the edges (DeVries and Taylor, 1708.04552, section 3.2)."""
    height, width = image.shape[:2]
    y, x = rng.integers(height), rng.integers(width)
    up, aside = round(HOLE * height / 2), round(HOLE * width / 2)
    holed = image.copy()
    holed[max(0, y - up) : y + up, max(0, x - aside) : x + aside] = 0
    return holed


def speed(sound: Sound, rng: np.random.Generator) -> Sound:
    """Faster or slower by up to a tenth, pitch and all (Ko et al., 2015, "Audio augmentation for speech
    recognition", section 2)."""
    percent = int(rng.integers(SPEEDS[0], SPEEDS[1] + 1))
    return resampled(sound, Fraction(100, percent))


def noise(sound: Sound, rng: np.random.Generator) -> Sound:
    """White noise at a ratio of signal to noise that is uniform in decibels."""
    return mixed(sound, rng.standard_normal(len(sound), np.float32), rng.uniform(*SNR_DB))


def mixed(sound: Sound, noise: Sound, snr_db: float) -> Sound:
    """The sound and as much of the noise that the ratio of their mean powers is `snr_db`.

    A shorter noise is repeated. A sound of silence stays silent.
    """
    fitted = np.resize(noise, len(sound))
    powers = float(np.mean(np.square(sound))), float(np.mean(np.square(fitted)))
    return sound + fitted * np.float32(np.sqrt(powers[0] / powers[1] / 10 ** (snr_db / 10)))


IMAGES: Mapping[str, Callable[[Image, np.random.Generator], Image]] = {
    "flip": flip, "crop": crop, "cutout": cutout,
}  # fmt: skip
SOUNDS: Mapping[str, Callable[[Sound, np.random.Generator], Sound]] = {"speed": speed, "noise": noise}


def augmented(
    features: Sequence[Mapping[str, Any]], names: Sequence[str], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Features with their images and sounds changed by those of the names that are for them, in order."""
    return [_changed(dict(feature), names, rng) for feature in features]


def _changed(feature: dict[str, Any], names: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    if "pixels" in feature:
        image = np.frombuffer(feature["pixels"], np.uint8).reshape(feature["shape"])
        for name in names:
            image = IMAGES[name](image, rng) if name in IMAGES else image
        feature["pixels"] = image.tobytes()
    if "sound" in feature:
        sound = from_bytes(feature["sound"])
        for name in names:
            sound = SOUNDS[name](sound, rng) if name in SOUNDS else sound
        feature["sound"] = to_bytes(sound)
    return feature
