"""Speech by Whisper in torch: a folder of transformers, plain or adapted. Long sounds are heard in parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from isoflop.adapting.quiet import quiet
from isoflop.adapting.saved import is_adapted, load_adapted
from isoflop.serve.engines.batched import Batched
from isoflop.serve.engines.sounds import check_language, check_soundfile, read_sound, windows_of
from isoflop.serve.protocol import Heard
from isoflop.tasks import load_base, task_of
from isoflop.tasks.media import to_bytes
from isoflop.tasks.speech import Speech, plain_spec

WINDOWS = 4  # that are heard together, of one sound or of several


class Window(NamedTuple):
    """A part of a sound."""

    sound: bytes  # in 16 bits
    language: str  # "": as the model hears it


class Whisper(Batched[Window, str]):
    """One language is what an adapted model was trained on, or what the request or the model says."""

    def __init__(self, path: Path, *, threads: int) -> None:
        super().__init__(path, threads=threads, items=WINDOWS, padded=WINDOWS)

    def _load(self) -> None:
        check_soundfile()
        with quiet():
            if is_adapted(self._path):
                self._task, self._base, self._spec, self._model = load_adapted(self._path)
            else:
                self._task, self._base = task_of(Speech.name), load_base(self._path)
                self._spec = plain_spec(self._base)
                self._model = self._task.build(self._base, self._spec).eval()
        self.context = self._spec.extra["tokens"]
        self._rate: int = self._base.processor.feature_extractor.sampling_rate
        generation = self._model.generation_config  # of one that is not merged, its base's
        self._languages = {str(mark).strip("<|>") for mark in getattr(generation, "lang_to_id", None) or {}}

    async def transcribe(self, sound: bytes, language: str | None) -> Heard:
        spoken = check_language(language, self._languages) or str(self._spec.extra["language"])
        parts, seconds = await self._read(self._parts, sound)
        windows = [Window(part, spoken) for part in parts]
        texts = await self._computed(windows, [1] * len(windows))
        return Heard(" ".join(filter(None, texts)), seconds)

    def _parts(self, sound: bytes) -> tuple[list[bytes], float]:
        """A sound cut where it is quiet, and its seconds."""
        samples = read_sound(sound, self._rate)
        parts = windows_of(samples, self._rate, self._spec.extra["seconds"])
        return [to_bytes(part) for part in parts], len(samples) / self._rate

    @torch.inference_mode()
    def _compute(self, items: Sequence[Window]) -> Sequence[str]:
        texts: dict[int, str] = {}
        for language in {window.language for window in items}:
            numbers = [n for n, window in enumerate(items) if window.language == language]
            spec = self._spec.model_copy(update={"extra": {**self._spec.extra, "language": language}})
            batch = self._task.collate(self._base, spec, [{"sound": items[n].sound} for n in numbers])
            with quiet():  # transformers warns of options that it had from itself
                found = self._task.predict(self._model, self._base, spec, batch)
            texts |= dict(zip(numbers, found, strict=True))
        return [texts[n] for n in range(len(items))]
