"""Speech behind the server: files of sound become the text that the model hears in them."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import adapted
from tiny_media import RATE, tiny_whisper, tones

from isoflop.adapting.applied import predictions
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.saved import save_adapted
from isoflop.errors import CorruptError, ProjectError
from isoflop.serve.engines import sounds
from isoflop.serve.engines.faster import FasterWhisper
from isoflop.serve.engines.sounds import read_sound, windows_of
from isoflop.serve.engines.whisper import Whisper
from isoflop.serve.protocol import EngineError, Heard, Hears, RequestError
from isoflop.tasks import load_base, task_of
from isoflop.tasks.media import sound_of

SPECIAL = ("translate", "transcribe", "startoflm", "startofprev", "nospeech")


def heard(engine: Whisper | FasterWhisper, *files: bytes, language: str | None = None) -> list[Heard]:
    async def work() -> list[Heard]:
        await engine.start()
        try:
            assert isinstance(engine, Hears)
            return list(await asyncio.gather(*(engine.transcribe(file, language) for file in files)))
        finally:
            await engine.close()

    return asyncio.run(work())


def sound(*hertz: float, seconds: float = 0.5, rate: int = RATE, format: str = "WAV") -> bytes:
    """Tones one after the other."""
    time = np.arange(round(seconds * rate)) / rate
    file = io.BytesIO()
    tone = np.concatenate([0.3 * np.sin(2 * np.pi * f * time) for f in hertz])
    soundfile.write(file, np.stack([tone, tone], axis=1), rate, format=format)
    return file.getvalue()


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapted to two words, of windows of a second."""
    folder = tmp_path_factory.mktemp("listener")
    task, base = task_of("speech"), load_base(tiny_whisper(folder / "base"))
    rows = tones(32, folder / "tones")
    model, spec, _ = adapted(task, base, rows, steps=50)
    save_adapted(folder / "model", task, base, spec, AdaptConfig(task="speech", lr=3e-3), model)
    rows.to_json(folder / "rows.jsonl")
    return folder


def test_what_was_learned_is_heard(listener: Path) -> None:
    """As `isoflop predict` writes it, in one batch, whatever form the sound has."""
    known = [row["prediction"] for row in predictions(listener / "model", [listener / "rows.jsonl"])]
    files = [Path(listener / "tones" / f"{i}.wav").read_bytes() for i in range(6)]
    found = heard(Whisper(listener / "model", threads=1), *files)
    assert [text for text, _ in found] == known[:6]
    assert set(known) == {"low", "high"}
    assert [seconds for _, seconds in found] == [0.5] * 6
    others = [sound(300, rate=44_100, format="FLAC"), sound(1500, rate=8_000, format="OGG")]
    assert [text for text, _ in heard(Whisper(listener / "model", threads=1), *others)] == ["low", "high"]


def test_a_long_sound_is_heard_in_windows(listener: Path) -> None:
    """As if each was a sound of its own."""
    samples = sound_of({"bytes": sound(300, 1500, 0, 1500, 300, seconds=0.7)}, RATE)
    windows = windows_of(samples, RATE, 1.0)
    files = []
    for part in [samples, *windows]:
        file = io.BytesIO()
        soundfile.write(file, part, RATE, format="WAV")
        files.append(file.getvalue())
    whole, *parts = heard(Whisper(listener / "model", threads=1), *files)
    assert whole.text == " ".join(part.text for part in parts)
    assert whole.seconds == pytest.approx(sum(part.seconds for part in parts)) == 3.5
    assert len(parts) >= 4
    assert len(whole.text) > 8


@pytest.mark.parametrize("file", [b"", b"no sound", sound(300)[:30], sound(300, seconds=0)])
def test_what_is_no_sound_is_refused(listener: Path, file: bytes) -> None:
    with pytest.raises(RequestError, match="the sound cannot be read") as caught:
        heard(Whisper(listener / "model", threads=1), file)
    assert caught.value.param == "file"


@pytest.mark.parametrize(("rate", "most"), [(16_000, "8,000"), (8_000, "8,000"), (48_000, "24,000")])
def test_more_than_fits_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch, rate: int, most: str) -> None:
    """As it is in the file, or as the model would take it."""
    monkeypatch.setattr(sounds, "MOST", 7_999)
    with pytest.raises(RequestError, match=f"{most} samples, and 7,999 are read") as caught:
        read_sound(sound(300, rate=rate), RATE)
    assert caught.value.status == 413
    monkeypatch.setattr(sounds, "MOST", 24_000)
    assert len(read_sound(sound(300, rate=rate), RATE)) == 8_000


@pytest.mark.parametrize("rate", [1, 3_999, 192_001, 2**31 - 1])
def test_a_header_does_not_make_a_huge_sound_of_a_small_file(rate: int) -> None:
    """By the samples to be made, or by the filter that would make them."""
    file = bytearray(sound(300, seconds=0.01))
    file[24:28] = rate.to_bytes(4, "little")
    with pytest.raises(RequestError, match=f"{rate:,} samples a second, and 4,000 to 192,000 are read"):
        read_sound(bytes(file), RATE)


def test_languages_of_a_plain_model(tmp_path: Path) -> None:
    """It hears which, is told, or does not know it."""
    folder = tiny_whisper(tmp_path / "many", special=("<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>"))
    path = folder / "generation_config.json"
    ids = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    numbers = {token["content"]: token["id"] for token in ids}
    says = json.loads(path.read_text()) | {
        "is_multilingual": True,
        "lang_to_id": {mark: numbers[mark] for mark in ("<|en|>", "<|de|>")},
        "task_to_id": {task: numbers[f"<|{task}|>"] for task in ("transcribe", "translate")},
    }
    path.write_text(json.dumps(says))
    german, unsaid = (heard(Whisper(folder, threads=1), sound(300), language=x)[0] for x in ("de", None))
    assert german.seconds == unsaid.seconds == 0.5
    with pytest.raises(RequestError, match=r"does not know the language 'xx': .* such as de, en"):
        heard(Whisper(folder, threads=1), sound(300), language="xx")


@settings(deadline=None, max_examples=40)
@given(seconds=st.floats(0.3, 20), most=st.floats(1, 5))
def test_windows_are_the_whole_sound(seconds: float, most: float) -> None:
    samples = np.random.default_rng(0).normal(size=round(seconds * 1000)).astype(np.float32)
    windows = windows_of(samples, 1000, most)
    assert np.concatenate(windows) == pytest.approx(samples)
    assert all(0 < len(window) <= round(most * 1000) for window in windows)


def test_a_window_ends_where_it_is_quiet() -> None:
    samples = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    samples[1700:1950] *= 0.01
    first, second, *_ = windows_of(samples, 1000, 2)
    assert 1700 < len(first) < 1950
    assert len(first) + len(second) > 3500


# -- CTranslate2 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As its converter writes it; faster-whisper takes windows of 30 seconds alone."""
    converters = pytest.importorskip(
        "ctranslate2.converters", reason="the extra isoflop[speech] is not installed"
    )
    folder = tmp_path_factory.mktemp("converted")
    special = [f"<|{name}|>" for name in SPECIAL]
    plain = tiny_whisper(folder / "plain", seconds=30, written=448, special=special)
    converters.TransformersConverter(str(plain), copy_files=["tokenizer.json"]).convert(str(folder / "made"))
    load_base(plain).processor.feature_extractor.save_pretrained(folder / "made")
    return folder


def test_both_engines_hear_the_same(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedily, the first tokens of random weights."""
    from faster_whisper import WhisperModel

    whole = WhisperModel.transcribe
    monkeypatch.setattr(
        WhisperModel, "transcribe",
        lambda *given, **options: whole(
            *given, **options, beam_size=1, temperature=0.0, without_timestamps=True, max_new_tokens=8,
            suppress_tokens=[], suppress_blank=False, no_speech_threshold=None, log_prob_threshold=None,
        ),
    )  # fmt: skip
    (one,) = heard(FasterWhisper(converted / "made", threads=1), sound(300, 700))
    (other,) = heard(Whisper(converted / "plain", threads=1), sound(300, 700))
    assert one.seconds == other.seconds == 1.0
    assert len(one.text) > 3
    assert other.text.startswith(one.text[:4])


@pytest.mark.parametrize("closes", [False, True])
def test_a_sound_that_nobody_waits_for_is_not_heard_to_its_end(
    converted: Path, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    from faster_whisper import WhisperModel
    from faster_whisper.transcribe import Segment

    parts, began, goes_on = list[str](), threading.Event(), threading.Event()

    def hear(*given: Any, **options: Any) -> tuple[Iterator[Any], None]:
        def heard() -> Iterator[Any]:
            for number in range(9):
                parts.append(f"part {number}")
                began.set()
                assert goes_on.wait(60)
                yield Segment(0, 0, 0.0, 1.0, parts[-1], [], 0.0, 1.0, 0.0, None, 0.0)

        return heard(), None

    monkeypatch.setattr(WhisperModel, "transcribe", hear)

    async def work() -> None:
        engine = FasterWhisper(converted / "made", threads=1)
        await engine.start()
        left = asyncio.create_task(engine.transcribe(sound(300), None))
        assert await asyncio.to_thread(began.wait, 60)
        if closes:
            closing = asyncio.create_task(engine.close())
            await asyncio.sleep(0)
            goes_on.set()
            await closing
            with pytest.raises(EngineError, match="was stopped"):
                await left
        else:
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            goes_on.set()
            whole = await engine.transcribe(sound(300), None)
            assert whole.text == " ".join(f"part {number}" for number in range(9))
            await engine.close()
        assert len(parts) == (1 if closes else 10)

    asyncio.run(work())


def test_a_folder_of_ctranslate2_that_lacks_a_part_is_told(converted: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the sound cannot be read"):
        heard(FasterWhisper(converted / "made", threads=1), b"no sound")
    (tmp_path / "model.bin").write_bytes((converted / "made" / "model.bin").read_bytes()[:1000])
    with pytest.raises(ProjectError, match=r"has no tokenizer\.json"):
        heard(FasterWhisper(tmp_path, threads=1), sound(300))
    (tmp_path / "tokenizer.json").write_bytes((converted / "made" / "tokenizer.json").read_bytes())
    with pytest.raises(CorruptError, match="faster-whisper cannot open"):
        heard(FasterWhisper(tmp_path, threads=1), sound(300))


def test_without_faster_whisper_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(ProjectError, match="needs the package faster-whisper") as caught:
        heard(FasterWhisper(tmp_path, threads=1), sound(300))
    assert "isoflop[speech]" in caught.value.hint
