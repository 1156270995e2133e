"""What is said in a sound, written down (speech recognition by Whisper, Radford et al., 2212.04356).

Whisper reads windows of 30 seconds and pads what is shorter, although most clips are a few seconds. Its
encoder's positions are fixed sines, so that a shorter window is the same model with the last positions left
out: the window is the longest training clip and some room, and is saved in the adapted model's
configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from isoflop.errors import AdaptError
from isoflop.examples.media import undecoded
from isoflop.tasks.base import opened
from isoflop.tasks.media import from_bytes, read_or_none, sound_of, surveyed, to_bytes
from isoflop.tasks.protocol import SPEECH, Base, LossOptions, Role, Spec

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

AUDIO = Role("audio", ("audio", "sound", "speech", "wav", "file", "file_name", "path"), "audio")
TEXT = Role("text", ("text", "transcript", "transcription", "sentence", "normalized_text"), "text")
ROOM = 1.15  # window over the longest training clip: speech a tenth slower, and validation clips, fit too
FRAMES_A_POSITION = 2  # the second convolution's stride
TRANSCRIBE = "transcribe"  # Whisper translates too
NO_TARGET = -100  # of cross-entropy
PREFIX = 4  # tokens before a text at most: start, language, task, no timestamps


class Speech:
    """The target is what Whisper's decoder writes after its tokens for the language and the task."""

    name: ClassVar[str] = "speech"
    roles: ClassVar[tuple[Role, ...]] = (AUDIO, TEXT)
    metrics: ClassVar[tuple[str, ...]] = ("wer", "cer")
    kinds: ClassVar[tuple[str, ...]] = (SPEECH,)
    soft: ClassVar[bool] = True

    def spec(self, rows: Dataset, base: Base) -> Spec:
        """Its `extra`: seconds of the window, language of a multilingual base, tokens that are written for a
        sound at most (twice the most in training), and unreadable files."""
        _check(base)
        rate = _extractor(base).sampling_rate
        shapes, unreadable = surveyed(undecoded(rows)["audio"], lambda v: sound_of(v, rate))
        longest = max(samples for (samples,) in shapes) / rate
        language = _language(base)
        tokens = max(len(_targets(base, language, str(text))) for text in rows["text"])
        return Spec(
            task=self.name,
            extra={
                "seconds": min(math.ceil(ROOM * longest), _window(base)), "language": language,
                "tokens": min(2 * tokens, base.config.max_target_positions - len(_prefix(base, language))),
                "unreadable": unreadable,
            },
        )  # fmt: skip

    def build(self, base: Base, spec: Spec) -> nn.Module:
        _check(base)
        model = opened("AutoModelForSpeechSeq2Seq", base.folder)
        shorten(model, _positions(base, spec))
        return model

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        rate = _extractor(base).sampling_rate
        found = [read_or_none(value, lambda v: sound_of(v, rate)) for value in rows["audio"]]
        most = spec.extra["seconds"] * rate
        features: dict[str, list[Any]] = {
            "sound": [b"" if sound is None else to_bytes(sound[:most]) for sound in found],
            "cut": [sound is not None and len(sound) > most for sound in found],
            "unreadable": [sound is None for sound in found],
        }
        if "text" in rows:
            features["labels"] = [_targets(base, spec.extra["language"], str(text)) for text in rows["text"]]
        return features

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_features` (b, mels, frames), `labels` and `decoder_input_ids` (b, t)."""
        extractor = _extractor(base)
        batch = {
            "input_features": extractor(
                [from_bytes(f["sound"]) for f in features], sampling_rate=extractor.sampling_rate,
                max_length=spec.extra["seconds"] * extractor.sampling_rate, return_tensors="pt",
            )["input_features"]
        }  # fmt: skip
        if "labels" in features[0]:
            from torch.nn.utils.rnn import pad_sequence

            ids = [torch.tensor(f["labels"]) for f in features]
            start = torch.full((len(ids), 1), base.config.decoder_start_token_id)
            read = pad_sequence(ids, batch_first=True, padding_value=base.config.pad_token_id)[:, :-1]
            batch["labels"] = pad_sequence(ids, batch_first=True, padding_value=NO_TARGET)
            batch["decoder_input_ids"] = torch.cat([start, read], dim=1)
        return batch

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(b, t, V)."""
        found: Tensor = model(
            input_features=batch["input_features"], decoder_input_ids=batch["decoder_input_ids"],
            use_cache=False,
        ).logits  # fmt: skip
        return found

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        labels = batch["labels"]
        nats = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none", ignore_index=NO_TARGET,
            label_smoothing=options.label_smoothing,
        )  # fmt: skip
        return nats.sum(1) / (labels != NO_TARGET).sum(1)

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """The text of each sound, by greedy decoding."""
        language = spec.extra["language"]
        spoken = {"language": language, "task": TRANSCRIBE} if language else {}
        ids = model.generate(  # type: ignore[operator]
            input_features=batch["input_features"], num_beams=1, do_sample=False,
            max_new_tokens=spec.extra["tokens"], **spoken,
        )  # fmt: skip
        texts = base.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        return [str(text).strip() for text in rows["text"]]


def plain_spec(base: Base) -> Spec:
    """Of a base that is not adapted: its own window, and with `language` "" the one that it hears."""
    _check(base)
    tokens = base.config.max_target_positions - PREFIX
    extra = {"seconds": _window(base), "language": "", "tokens": tokens, "unreadable": []}
    return Spec(task=Speech.name, extra=extra)


def shorten(model: Any, positions: int) -> None:
    """Keeps the first positions of a Whisper encoder: it reads twice as many frames, and no other number."""
    encoder = model.get_encoder()
    kept = encoder.embed_positions.weight[:positions].detach().clone()
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(kept)  # type: ignore[no-untyped-call]
    encoder.max_source_positions = model.config.max_source_positions = positions


def _check(base: Base) -> None:
    if base.config.model_type != "whisper":
        raise AdaptError(
            f"{base.folder} is of the model type {base.config.model_type!r}, and speech takes whisper",
            hint="name a folder of a Whisper model, or another --task",
        )


def _extractor(base: Base) -> Any:
    return base.processor.feature_extractor


def _window(base: Base) -> int:
    """Seconds that the base reads."""
    frames = base.config.max_source_positions * FRAMES_A_POSITION
    return int(frames * _extractor(base).hop_length // _extractor(base).sampling_rate)


def _positions(base: Base, spec: Spec) -> int:
    """Of the encoder, for the spec's window."""
    extractor = _extractor(base)
    samples = spec.extra["seconds"] * extractor.sampling_rate
    return int(samples // (extractor.hop_length * FRAMES_A_POSITION))


def _language(base: Base) -> str:
    """That a multilingual base is set to; "" where it has one language alone. Raises AdaptError for none."""
    from transformers import GenerationConfig

    generation = GenerationConfig.from_pretrained(base.folder)
    if not getattr(generation, "is_multilingual", False):
        return ""
    found = getattr(generation, "language", None) or base.processor.tokenizer.language
    if found is None:
        raise AdaptError(
            f"{base.folder} is of many languages and set to none",
            hint='put the one that is spoken into its generation_config.json: "language": "en"',
        )
    return str(found)


def _prefix(base: Base, language: str) -> list[int]:
    """What the decoder is given: start, then language and task of a multilingual base, and no timestamps."""
    tokenizer = base.processor.tokenizer
    if language:
        tokenizer.set_prefix_tokens(language=language, task=TRANSCRIBE)
    return list(tokenizer.prefix_tokens)


def _targets(base: Base, language: str, text: str) -> list[int]:
    """Ids that follow the start token, up to the end token, as many as the decoder reads."""
    tokenizer, prefix = base.processor.tokenizer, _prefix(base, language)[1:]
    ids = tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]
    most = base.config.max_target_positions - len(prefix) - 1
    return [*prefix, *ids[:most], tokenizer.eos_token_id]
