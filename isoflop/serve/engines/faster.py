"""Speech by Whisper in CTranslate2, through faster-whisper, which hears long sounds in windows itself."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from isoflop.errors import CorruptError, ProjectError
from isoflop.serve.engines.batched import Batched
from isoflop.serve.engines.sounds import Sound, check_language, check_soundfile, read_sound
from isoflop.serve.protocol import EngineError, Heard

MODEL, TOKENIZER = "model.bin", "tokenizer.json"  # of its folders

Asked = tuple[Sound, str | None, threading.Event]  # the last: nobody waits for it any more


class FasterWhisper(Batched[Asked, str]):
    """A folder that CTranslate2's converter wrote, with its tokenizer.json; one sound at a time."""

    name = "faster-whisper"

    def __init__(self, path: Path, *, threads: int) -> None:
        super().__init__(path, threads=threads, items=1, padded=1)

    def _load(self) -> None:
        check_soundfile()
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise ProjectError(
                f"opening {self._path} needs the package faster-whisper", hint="pip install 'isoflop[speech]'"
            ) from None
        if not (self._path / TOKENIZER).is_file():  # it would look for one in the net
            raise ProjectError(
                f"{self._path} has no {TOKENIZER}", hint="copy that of the model that it was made of"
            )
        try:
            self._model = WhisperModel(str(self._path), device="cpu", cpu_threads=self._threads)
        except Exception as error:  # it has no class of its own for what it cannot read
            raise CorruptError(
                f"faster-whisper cannot open {self._path}: {str(error).splitlines()[0]}",
                hint="convert the model again",
            ) from None
        self.context = int(self._model.max_length)
        self._languages = self._model.supported_languages if self._model.model.is_multilingual else []

    async def transcribe(self, sound: bytes, language: str | None) -> Heard:
        spoken = check_language(language, self._languages)
        rate = self._model.feature_extractor.sampling_rate
        samples = await self._read(lambda data: read_sound(data, rate), sound)
        given_up = threading.Event()
        try:
            (text,) = await self._computed([(samples, spoken, given_up)], [1])
        finally:
            given_up.set()
        return Heard(text, len(samples) / rate)

    def _compute(self, items: Sequence[Asked]) -> Sequence[str]:
        return [self._text(*asked) for asked in items]

    def _text(self, samples: Sound, language: str | None, given_up: threading.Event) -> str:
        parts, _ = self._model.transcribe(samples, language=language)
        texts = []
        for part in parts:  # which is heard as it is asked for
            if given_up.is_set() or not self._open:
                raise EngineError(f"{self.name} was stopped")
            texts.append(part.text.strip())
        return " ".join(filter(None, texts))
