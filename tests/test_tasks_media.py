"""Tasks on images, speech, and images with text: drawn shapes, tones, and what neither part tells alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image
from tiny_media import RATE, SHAPES, SIDE, coloured, shapes, tiny_whisper, tiny_words, tones
from torch import nn
from whisper_ctranslate2 import variables

from isoflop.adapting.augment_media import IMAGES, SOUNDS, augmented, mixed
from isoflop.adapting.parts import new_parameters
from isoflop.errors import AdaptError
from isoflop.tasks import TASKS, Base, LossOptions, Spec, Task, load_base
from isoflop.tasks.image_text import with_image_base
from isoflop.tasks.media import UNREADABLE, from_bytes, image_of, resampled, sound_of, surveyed, to_bytes
from isoflop.tasks.scratch import SCRATCH, measured, scratch


def encoded(task: Task, base: Base, spec: Spec, rows: Dataset) -> list[dict[str, Any]]:
    """As the loop does it: through Arrow."""
    found = rows.map(
        lambda some: task.encode(base, spec, some), batched=True, remove_columns=rows.column_names,
        keep_in_memory=True,
    )  # fmt: skip
    return list(found)


def learned(
    task: Task, base: Base, spec: Spec, rows: Dataset, *, steps: int, lr: float, batch: int = 32,
    augment: Sequence[str] = (),
) -> tuple[Any, list[float]]:  # fmt: skip
    """After plain steps of AdamW: the model and the mean loss of each step."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model: nn.Module = task.build(base, spec).train()
    features = encoded(task, base, spec, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        some = [features[i] for i in rng.permutation(len(features))[:batch]]
        made = task.collate(base, spec, augmented(some, augment, rng))
        loss = task.loss(task.logits(model, made), made, LossOptions())
        assert loss.shape == (len(some),)
        optimizer.zero_grad()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.mean().item())
    return model.eval(), losses


@torch.no_grad()
def predicted(task: Task, base: Base, spec: Spec, model: nn.Module, rows: Dataset) -> list[Any]:
    return task.predict(model, base, spec, task.collate(base, spec, encoded(task, base, spec, rows)))


def share(predictions: Sequence[NDArray[Any]], references: Sequence[int]) -> float:
    return float(np.mean([int(p.argmax()) == r for p, r in zip(predictions, references, strict=True)]))


def small(folder: Path) -> Path:
    """The transformer of that folder with two narrow layers on 4 x 4 patches."""
    path = folder / "config.json"
    changes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", SCRATCH)
def test_shapes_are_told_apart_from_scratch(name: str, tmp_path: Path) -> None:
    task = TASKS["image-classification"]
    train, test = (shapes(n, tmp_path / f"{n}", seed=n) for n in (200, 60))
    asked = measured(train)
    assert asked == {"image_size": SIDE, "channels": 1, "labels": 3}
    folder = scratch(name, tmp_path / "base", **asked)
    base = load_base(small(folder) if name == "vit" else folder)
    spec = task.spec(train, base)
    assert (spec.labels, spec.counts, spec.extra["unreadable"]) == (SHAPES, (67, 67, 66), [])
    steps = 40 if name == "convnet" else 80
    model, losses = learned(task, base, spec, train, steps=steps, lr=3e-3, augment=("flip",))
    assert losses[0] == pytest.approx(np.log(3), abs=0.5)
    unseen = task.encode(base, spec, {"image": train["image"][:1], "label": ["oval"]})
    assert unseen["labels"] == [-1]
    assert share(predicted(task, base, spec, model, test), task.references(spec, test)) > 0.85
    model.save_pretrained(tmp_path / "saved")
    base.processor.save_pretrained(tmp_path / "saved")
    again = load_base(tmp_path / "saved")
    rows = test.select(range(8))
    before, after = (
        predicted(task, b, spec, m, rows) for b, m in ((base, model), (again, task.build(again, spec).eval()))
    )
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_pixels_are_those_of_the_processor(tmp_path: Path) -> None:
    """What encode and collate make together is what the processor makes at once, in colour and in grey."""
    task = TASKS["image-classification"]
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        base = load_base(scratch("vit", tmp_path / str(channels), image_size=20, channels=channels, labels=2))
        shape = (24, 30) if channels == 1 else (24, 30, 3)
        images = [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for _ in range(3)]
        spec = Spec(task=task.name, labels=("a", "b"))
        features = task.encode(base, spec, {"image": images})
        made = task.collate(base, spec, _rows_of(features))
        whole = base.processor(images, return_tensors="pt")["pixel_values"]
        assert made["pixel_values"].shape == whole.shape
        torch.testing.assert_close(made["pixel_values"], whole, atol=1e-5, rtol=0)
    grey = image_of(Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)), 1)
    assert grey.shape == (4, 5, 1)


def test_unreadable_files_are_counted_and_too_many_named(tmp_path: Path) -> None:
    task = TASKS["image-classification"]
    rows = shapes(60, tmp_path / "drawn")
    base = load_base(scratch("vit", tmp_path / "base", **measured(rows)))
    broken = [Path(rows["image"][i]) for i in (3, 40, 41, 42)]
    broken[0].write_bytes(broken[0].read_bytes()[:70])
    broken[1].write_text("no picture")
    spec = task.spec(rows, base)
    assert spec.extra["unreadable"] == [str(path) for path in broken[:2]]
    features = encoded(task, base, spec, rows)
    assert [i for i, f in enumerate(features) if f["unreadable"]] == [3, 40]
    assert len(features) == 60
    assert set(features[3]["pixels"]) == {0}
    broken[2].unlink()
    broken[3].write_bytes(b"")
    assert UNREADABLE * 60 < 4
    with pytest.raises(AdaptError, match=r"4 of the 60 training files cannot be read: .*3\.png.*\.\.\."):
        task.spec(rows, base)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


def test_two_words_are_learned_from_tones(whisper: Path, tmp_path: Path) -> None:
    task, base, rows = TASKS["speech"], load_base(whisper), tones(40, tmp_path / "tones")
    spec = task.spec(rows, base)
    assert dict(spec.extra) == {"seconds": 1, "language": "", "tokens": 14, "unreadable": []}
    model, losses = learned(task, base, spec, rows, steps=60, lr=5e-3, batch=16, augment=("speed", "noise"))
    assert losses[-1] < 0.2 < losses[0]
    assert predicted(task, base, spec, model, rows) == task.references(spec, rows)
    model.save_pretrained(tmp_path / "saved")
    base.processor.save_pretrained(tmp_path / "saved")
    again = load_base(tmp_path / "saved")
    assert again.config.max_source_positions == 50  # half of the base's: one second
    assert predicted(task, again, spec, task.build(again, spec).eval(), rows) == list(rows["text"])


def positions(model: Any) -> torch.Tensor:
    """Of the encoder."""
    found: torch.Tensor = model.get_encoder().embed_positions.weight
    return found


def test_a_shorter_window_changes_no_position(whisper: Path, tmp_path: Path) -> None:
    """The shortened encoder is the encoder without its last positions; what is longer is said to be cut."""
    task, base = TASKS["speech"], load_base(whisper)
    rows = tones(2, tmp_path / "tones", seconds=0.99)
    spec = task.spec(rows, base)
    assert spec.extra["seconds"] == 2
    short = spec.model_copy(update={"extra": {**spec.extra, "seconds": 1}})
    whole, cut = (positions(task.build(base, each)) for each in (spec, short))
    assert len(whole) == 100
    torch.testing.assert_close(cut, whole[:50])
    longer = tones(2, tmp_path / "longer", seconds=1.5)
    assert task.encode(base, short, longer[:])["cut"] == [True, True]
    assert task.encode(base, spec, longer[:])["cut"] == [False, False]


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_sampling_rate_is_the_same_sound(whisper: Path, tmp_path: Path, rate: int) -> None:
    task, base = TASKS["speech"], load_base(whisper)
    spec = Spec(task=task.name, extra={"seconds": 1, "language": ""})
    at = [tones(2, tmp_path / str(r), rate=r) for r in (RATE, rate)]
    sounds = [from_bytes(task.encode(base, spec, rows[:])["sound"][0]) for rows in at]
    assert len(sounds[0]) == len(sounds[1]) == RATE // 2
    inner = slice(400, -400)  # a filter rings at the edges
    np.testing.assert_allclose(sounds[1][inner], sounds[0][inner], atol=0.01)


def test_sounds_of_every_form(whisper: Path, tmp_path: Path) -> None:
    path = Path(tones(1, tmp_path / "tones")["audio"][0])
    samples, rate = soundfile.read(path, dtype="float32")
    forms: list[Any] = [
        str(path), {"path": str(path), "bytes": None}, {"path": None, "bytes": path.read_bytes()},
        {"array": samples, "sampling_rate": rate},
    ]  # fmt: skip
    found = [sound_of(form, RATE) for form in forms]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    path.write_text("no sound")
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0, np.float32), RATE)
    _, bad = surveyed([*forms[2:] * 30, str(path), str(empty), None], lambda v: sound_of(v, RATE))
    assert bad == [str(path), str(empty), "example 63"]
    task, base = TASKS["speech"], load_base(whisper)
    spec = Spec(task=task.name, extra={"seconds": 1, "language": ""})
    features = task.encode(base, spec, {"audio": [str(path), forms[2]], "text": ["low", "high"]})
    assert features["unreadable"] == [True, False]
    batch = task.collate(base, spec, _rows_of(features))
    assert batch["input_features"].shape == (2, 16, 100)
    assert batch["labels"].shape == batch["decoder_input_ids"].shape
    assert torch.equal(batch["labels"][1, :-1], batch["decoder_input_ids"][1, 1:])


def test_a_base_of_many_languages_must_be_set_to_one(whisper: Path, tmp_path: Path) -> None:
    for path in whisper.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    written = json.loads((whisper / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**written, "is_multilingual": True}))
    with pytest.raises(AdaptError, match="set to none"):
        TASKS["speech"].spec(tones(2, tmp_path / "tones"), load_base(tmp_path))


def test_variables_of_ctranslate2(tmp_path: Path) -> None:
    """A file by hand: a scalar, 8 bits with a scale of each row, 16 bits, and an alias."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    def variable(name: str, array: NDArray[Any], type: int) -> bytes:
        sizes = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        return string(name) + sizes + struct.pack("<BI", type, array.nbytes) + array.tobytes()

    whole = np.array([[1, -127, 5], [64, 0, 2]], np.int8)
    half = np.array([0.5, -2], np.float16)
    stored = (
        variable("a/weight", whole, 1) + variable("a/weight_scale", np.array([127, 64], np.float32), 0)
        + variable("a/bias", half, 4) + variable("heads", np.array(6, np.int16), 2)
    )  # fmt: skip
    head = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, 4)
    path = tmp_path / "model.bin"
    path.write_bytes(head + stored + struct.pack("<I", 1) + string("b/weight") + string("a/weight"))
    found = variables(path)
    assert sorted(found) == ["a/bias", "a/weight", "b/weight", "heads"]
    np.testing.assert_allclose(found["a/weight"], [[1 / 127, -1, 5 / 127], [1, 0, 2 / 64]], rtol=1e-6)
    assert np.array_equal(found["b/weight"], found["a/weight"])
    assert np.array_equal(found["a/bias"], half)
    assert found["heads"] == 6
    path.write_bytes(struct.pack("<I", 6) + string("TransformerSpec") + head[-8:])
    with pytest.raises(ValueError, match="TransformerSpec in version 6"):
        variables(path)


@pytest.fixture(scope="module")
def two_bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny BERT, and a convolutional network for colours."""
    image = scratch("convnet", tmp_path_factory.mktemp("image"), image_size=SIDE, channels=3, labels=2)
    return tiny_words(tmp_path_factory.mktemp("text")), image


def test_an_image_half_with_weights_is_not_new(two_bases: tuple[Path, Path], tmp_path: Path) -> None:
    """Its folder is another than the text's; what has no weights anywhere is new."""
    from transformers import AutoModel

    task, base, rows = TASKS["image-text"], load_base(two_bases[0]), coloured(4, 0)
    spec = with_image_base(task.spec(rows, base), two_bases[1])
    new = new_parameters(task.build(base, spec), base.folder)
    assert any(name.startswith("image.") for name in new)
    image = load_base(two_bases[1])
    AutoModel.from_config(image.config).save_pretrained(tmp_path)
    image.processor.save_pretrained(tmp_path)
    spec = with_image_base(spec, tmp_path)
    new = new_parameters(task.build(base, spec), base.folder)
    assert {name.split(".")[0] for name in new} == {"head"}


def test_fusion_learns_what_neither_part_tells(two_bases: tuple[Path, Path], tmp_path: Path) -> None:
    task, base = TASKS["image-text"], load_base(two_bases[0])
    train, test = coloured(160, 0), coloured(80, 1)
    bare = task.spec(train, base)
    with pytest.raises(AdaptError, match="is the text model alone"):
        task.build(base, bare)
    with pytest.raises(AdaptError, match="is of the kind encoder, not vision"):
        task.build(base, with_image_base(bare, two_bases[0]))
    spec = with_image_base(bare, two_bases[1])
    model, _ = learned(task, base, spec, train, steps=60, lr=2e-3)
    found = predicted(task, base, spec, model, test)
    truth = task.references(spec, test)
    assert share(found, truth) > 0.9
    blind = Dataset.from_dict({**test[:], "image": test["image"][:1] * len(test)})
    assert share(predicted(task, base, spec, model, blind), truth) < 0.75
    model.save_pretrained(tmp_path)
    base.processor.save_pretrained(tmp_path)
    again = load_base(tmp_path)
    same = predicted(task, again, bare, task.build(again, bare).eval(), test)
    np.testing.assert_allclose(same, found, atol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_changed_images_keep_their_shape_and_a_seed_says_all(name: str) -> None:
    image = np.random.default_rng(0).integers(1, 256, (14, 28, 3), np.uint8)
    before = image.copy()
    made = [IMAGES[name](image, np.random.default_rng(seed)) for seed in (0, 0, *range(1, 9))]
    assert all(m.shape == image.shape and m.dtype == np.uint8 for m in made)
    assert np.array_equal(made[0], made[1])
    assert len({m.tobytes() for m in made}) > 1
    assert np.array_equal(image, before)


def test_what_each_change_does_to_an_image() -> None:
    image = np.random.default_rng(0).integers(1, 256, (28, 28, 1), np.uint8)
    flips = [IMAGES["flip"](image, np.random.default_rng(seed)) for seed in range(200)]
    turned = sum(np.array_equal(flipped, image[:, ::-1]) for flipped in flips)
    assert turned + sum(np.array_equal(flipped, image) for flipped in flips) == 200
    assert 70 < turned < 130
    shifts = set()
    for seed in range(200):
        moved = IMAGES["crop"](image, np.random.default_rng(seed))[..., 0]
        found = [
            (y, x)
            for y in range(-2, 3)
            for x in range(-2, 3)
            if np.array_equal(moved[2:-2, 2:-2], image[2 + y : 26 + y, 2 + x : 26 + x, 0])
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) == 25
    holes = [(IMAGES["cutout"](image, np.random.default_rng(seed)) == 0).sum() for seed in range(200)]
    assert max(holes) == 14 * 14
    assert min(holes) >= 7 * 7


def test_noise_has_the_stated_power(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = (0.3 * np.sin(np.arange(RATE) / 9)).astype(np.float32)
    for snr_db in (-5, 0, 10, 30):
        for length in (RATE, 1000, 3 * RATE):
            added = mixed(sound, rng.standard_normal(length, np.float32), snr_db) - sound
            assert added.dtype == np.float32
            found = 10 * np.log10(np.mean(sound**2) / np.mean(added**2))
            assert found == pytest.approx(snr_db, abs=0.5)
    for _ in range(20):
        added = SOUNDS["noise"](sound, rng) - sound
        assert 4.5 < 10 * np.log10(np.mean(sound**2) / np.mean(added**2)) < 20.5


def test_speed_changes_length_and_pitch_together() -> None:
    sound = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    lengths = set()
    for seed in range(60):
        made = SOUNDS["speed"](sound, np.random.default_rng(seed))
        assert np.array_equal(made, SOUNDS["speed"](sound, np.random.default_rng(seed)))
        lengths.add(len(made))
        pitch = np.abs(np.fft.rfft(made)).argmax() * RATE / len(made)
        assert pitch == pytest.approx(440 * RATE / len(made), rel=0.01)
    assert RATE / 1.1 - 1 < min(lengths) < RATE / 1.05
    assert RATE / 0.95 < max(lengths) < RATE / 0.9 + 1
    assert resampled(sound, Fraction(1)) is sound


def test_features_are_changed_by_names_that_are_for_them() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 1), np.uint8)
    sound = rng.uniform(-0.9, 0.9, 800).astype(np.float32)
    pixels = {"pixels": image.tobytes(), "shape": [8, 8, 1], "labels": 1}
    features: list[Mapping[str, Any]] = [pixels, {"sound": to_bytes(sound), "labels": [1, 2]}, {"sound": b""}]
    same = augmented(features, ("typos",), rng)
    assert [dict(f) for f in features] == same
    np.testing.assert_allclose(from_bytes(features[1]["sound"]), sound, atol=1e-4)
    for names, changed in ((("cutout",), [True, False, False]), (("speed", "noise"), [False, True, False])):
        made = augmented(features, names, np.random.default_rng(1))
        assert [a != b for a, b in zip(made, features, strict=True)] == changed
        assert made == augmented(features, names, np.random.default_rng(1))


def _rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
