"""Images and sounds: columns of files, checked once so that training meets none that is broken."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import AdaptError
from isoflop.examples.generated import leave_out
from isoflop.progress import Progress

if TYPE_CHECKING:
    from datasets import Dataset

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au")
BLOCK = 1 << 16  # frames read at once


def read_audio(source: str | Path | Mapping[str, Any], rate: int) -> NDArray[np.float32]:
    """(samples,) in [-1, 1], the mean of the channels, at `rate` a second.

    `source` is a path, or {"bytes": ..., "path": ...} as `datasets` keeps sounds. Resampled by a polyphase
    filter (scipy.signal.resample_poly). Raises AdaptError where the sound cannot be decoded.
    """
    from scipy.signal import resample_poly

    soundfile = _soundfile()
    try:
        samples, found = soundfile.read(_opened(source), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise AdaptError(f"{_name(source)} cannot be read: {error}", hint="give it as WAV or FLAC") from None
    mono = samples.mean(axis=1)
    common = gcd(found, rate)
    return np.asarray(resample_poly(mono, rate // common, found // common), np.float32)


def with_images(rows: Dataset, column: str, place: Path, notes: list[str], progress: Progress) -> Dataset:
    """The column as files, {"bytes", "path"}; rows whose file does not decode are left out."""
    from datasets import Image

    raw = rows.cast_column(column, Image(decode=False))
    return _checked(raw, column, _check_image, place, notes, progress)


def with_sounds(rows: Dataset, column: str, place: Path, notes: list[str], progress: Progress) -> Dataset:
    """The column as paths, or as bytes where the rows hold the sounds, for `read_audio`; checked likewise."""
    from datasets import Audio

    if isinstance(rows.features[column], Audio):
        rows = rows.cast_column(column, Audio(decode=False))
    return _checked(rows, column, _check_sound, place, notes, progress)


def undecoded(rows: Dataset) -> Dataset:
    """Its columns of images and sounds as files, so that a broken one is met where it can be named."""
    from datasets import Audio, Image

    for column, feature in rows.features.items():
        if isinstance(feature, Image | Audio):
            rows = rows.cast_column(column, type(feature)(decode=False))
    return rows


def _checked(
    rows: Dataset, column: str, check: Callable[[Any], None], place: Path, notes: list[str],
    progress: Progress,
) -> Dataset:  # fmt: skip
    good = np.ones(len(rows), bool)
    bad: list[str] = []
    stage, done = f"checking each {column}", 0
    progress.start(stage, len(rows), "files")
    for batch in rows.select_columns([column]).iter(256):
        for value in batch[column]:
            try:
                check(value)
            except (OSError, ValueError, SyntaxError, RuntimeError):
                good[done] = False
                bad.append(_name(value))
            done += 1
        progress.update(stage, done)
    progress.finish(stage)
    leave_out(bad, len(rows), place, notes)
    return rows.select(np.flatnonzero(good)) if bad else rows


def _check_image(value: Any) -> None:
    """Decodes it, a JPEG in its smallest size: that meets every byte all the same."""
    from PIL import Image

    try:
        with Image.open(_opened(value)) as image:
            image.draft("RGB", (1, 1))
            image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None


def _check_sound(value: Any) -> None:
    with _soundfile().SoundFile(_opened(value)) as sound:
        if not sum(len(block) for block in sound.blocks(BLOCK)):
            raise ValueError("it is silent: no frames")


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError:
        raise AdaptError("soundfile is not installed", hint="pip install 'isoflop[adapt]'") from None
    return soundfile


def _opened(value: str | Path | Mapping[str, Any] | None) -> str | io.BytesIO:
    if isinstance(value, Mapping):
        return io.BytesIO(value["bytes"]) if value["bytes"] else str(value["path"])
    return str(value)


def _name(value: str | Path | Mapping[str, Any] | None) -> str:
    path = value["path"] if isinstance(value, Mapping) else value
    return Path(path).name if path else "one without a name"
