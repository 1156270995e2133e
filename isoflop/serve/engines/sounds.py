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

MOST = 1 << 28  # samples of all channels, 1 GB as they are read: 47 minutes of stereo at 48 kHz
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
    """(s,) of a file. Raises RequestError for what is none, is empty, or is too long."""
    import soundfile

    try:
        found = soundfile.info(io.BytesIO(data))
        if found.frames * found.channels <= MOST:
            return sound_of({"bytes": data}, rate)
    except (OSError, ValueError, soundfile.SoundFileError):
        raise RequestError(
            "the sound cannot be read: it is no WAV, FLAC, OGG or MP3 file, or it is damaged or empty",
            param="file",
        ) from None
    raise RequestError(
        f"the sound has {found.frames * found.channels:,} samples in all channels, and {MOST:,} are read",
        status=413, param="file",
    )  # fmt: skip


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
