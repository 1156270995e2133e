"""Sound files of requests, read and cut into what a model hears at once.

Shapes: s samples.
"""

from __future__ import annotations

import io
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import ProjectError
from isoflop.serve.protocol import RequestError
from isoflop.tasks.media import sound_of

MOST = 1 << 26  # samples, as read in one channel or as the model takes them: 268 MB, 69 minutes at 16 kHz
RATES = (4_000, 192_000)  # samples a second: beyond them a small file makes a huge one, or a huge filter
BLOCK = 1 << 14  # samples of each channel that are read at once
SEARCHED = 0.2  # of a window, its end, in which the quietest place is looked for
FRAME, QUIET = 0.02, 0.2  # seconds: of what has a loudness, and of what is quiet together

Sound = NDArray[np.float32]


def check_soundfile() -> None:
    """Raises ProjectError where sounds cannot be read at all."""
    try:
        import soundfile  # noqa: F401
    except ImportError:
        raise ProjectError(
            "reading sounds needs the package soundfile", hint="pip install 'isoflop[speech]'"
        ) from None


def check_language(asked: str | None, known: Collection[str]) -> str | None:
    """The language that was asked for, or None; models of one language know none, and are not asked.

    Raises RequestError for one that the model does not know.
    """
    if not asked or not known:
        return None
    if asked not in known:
        some = ", ".join(sorted(known)[:5])
        raise RequestError(
            f"the model does not know the language {asked!r}: it is named by a code, such as {some}",
            param="language",
        )
    return asked


def read_sound(data: bytes, rate: int) -> Sound:
    """(s,) of a file. Raises RequestError for what is none, is empty, or would be too much."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_size(file.frames, file.samplerate, rate)
            mono, read = np.empty(file.frames, np.float32), 0
            for block in file.blocks(BLOCK, dtype="float32", always_2d=True):
                mono[read : read + len(block)] = block.mean(1)
                read += len(block)
            return sound_of({"array": mono[:read], "sampling_rate": file.samplerate}, rate)
    except (OSError, ValueError, soundfile.SoundFileError):
        raise RequestError(
            "the sound cannot be read: it is no WAV, FLAC, OGG or MP3 file, or it is damaged or empty",
            param="file",
        ) from None


def _check_size(samples: int, found: int, wanted: int) -> None:
    """Raises RequestError where so many samples of a channel would be too many, as they are or as wanted."""
    low, high = RATES
    if not low <= found <= high:
        raise RequestError(
            f"the sound has {found:,} samples a second, and {low:,} to {high:,} are read", param="file"
        )
    if (most := max(samples, samples * wanted // found)) > MOST:
        raise RequestError(f"the sound has {most:,} samples, and {MOST:,} are read", status=413, param="file")


def windows_of(sound: Sound, rate: int, seconds: float) -> list[Sound]:
    """Parts of at most so many seconds, cut where the sound is quietest near the end of each."""
    most, made = round(seconds * rate), []
    while len(sound) > most:
        at = most - _quietest(sound[most - round(SEARCHED * most) : most], rate)
        made.append(sound[:at])
        sound = sound[at:]
    return [*made, sound]


def _quietest(sound: Sound, rate: int) -> int:
    """Samples from the quietest place to the end."""
    frame = round(FRAME * rate)
    loud = np.square(sound[: len(sound) // frame * frame]).reshape(-1, frame).mean(1)
    together = min(round(QUIET / FRAME), len(loud))
    means = np.convolve(loud, np.full(together, 1 / together), mode="valid")
    return len(sound) - round((int(means.argmin()) + together / 2) * frame)
