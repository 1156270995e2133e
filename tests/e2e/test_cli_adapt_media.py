"""`adapt`, `apply` and `score` on images, sounds, and images with texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_media import SHAPES, SIDE, coloured, drawn, tiny_whisper, tiny_words, tones

from e2e.commands import refused
from isoflop.adapting.records import Adapted
from isoflop.tasks.scratch import scratch

for extra in ("optuna", "peft"):  # here, so that importing them is no part of a budget
    pytest.importorskip(extra, reason="the extra isoflop[adapt] is not installed")

BROKEN = b"\x89PNG\r\n\x1a\nand no more"


pytestmark = pytest.mark.usefixtures("own_time")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shapes, one a sub-folder, and one file that is none."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(150):
        shape = SHAPES[number % len(SHAPES)]
        (folder / shape).mkdir(exist_ok=True)
        drawn(shape, rng).save(folder / shape / f"{number}.png")
    (folder / "cross" / "broken.png").write_bytes(BROKEN)
    return folder


def lines(out: str) -> Iterator[dict[str, object]]:
    return (json.loads(line) for line in out.splitlines())


def test_images_from_scratch(isoflop, pictures: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asked = (
        "adapt", "convnet", "--task", "image-classification", "--data", pictures, "--budget", "8s",
        "--no-law", "--set", "batch=16", "--project", tmp_path,
    )  # fmt: skip
    answer = isoflop(*asked, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    folder = Path(found.pop("folder"))
    done = Adapted.model_validate(found)
    assert sum(done.examples.values()) == 150
    assert any("1 of 151 files" in note and "broken.png" in note for note in done.notes)
    config = done.config
    assert (config.method, config.augment, config.weight_decay) == ("full", ("flip", "crop"), 0.05)
    assert done.test[0].metric == "accuracy"
    assert done.test[0].value > done.baseline[0].value
    bases = list((tmp_path / "artifacts").glob("base-convnet-*"))
    assert [str(base) for base in bases] == [done.base_path]

    again = isoflop(*asked)
    assert "nothing to do" in again.err
    assert "broken.png" in again.out
    assert list((tmp_path / "artifacts").glob("base-convnet-*")) == bases

    said = isoflop("apply", folder, "--data", pictures)
    assert "broken.png" in said.err
    predictions = list(lines(said.out))
    assert len(predictions) == 150
    right = [Path(str(line["file"])).parent.name == line["prediction"] for line in predictions]
    score = json.loads(isoflop("score", folder, "--data", pictures, "--json").out)["scores"][0]
    assert (score["metric"], score["examples"]) == ("accuracy", 150)
    assert score["value"] == pytest.approx(np.mean(right))

    other = tmp_path / "other" / "oval"
    other.mkdir(parents=True)
    drawn("circle", np.random.default_rng(1)).save(other / "0.png")
    assert "oval (1)" in isoflop("score", folder, "--data", other.parent).err


def test_speech(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    whisper, sounds = tiny_whisper(tmp_path / "whisper"), tmp_path / "sounds"
    for number, text in enumerate(tones(60, sounds)["text"]):
        (sounds / f"{number}.txt").write_text(text)
    (sounds / "60.wav").write_bytes(b"RIFF and no more")
    (sounds / "60.txt").write_text("low")
    answer = isoflop(
        "adapt", whisper, "--task", "speech", "--data", sounds, "--budget", "7s", "--no-law",
        "--method", "decoder", "--set", "lr=5e-3", "--project", tmp_path / "home", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert any("60.wav" in note for note in found["notes"])
    assert ["speed", "noise"] in [trial["config"]["augment"] for trial in found["trials"]]
    predictions = list(lines(isoflop("apply", found["folder"], "--data", sounds).out))
    assert len(predictions) == 60
    assert {Path(str(line["file"])).suffix for line in predictions} == {".wav"}
    scores = json.loads(isoflop("score", found["folder"], "--data", sounds, "--json").out)["scores"]
    assert [score["metric"] for score in scores] == ["wer", "cer"]


def test_images_with_texts(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words, data = tiny_words(tmp_path / "words"), tmp_path / "both.parquet"
    coloured(120, 0).to_parquet(str(data))
    image = scratch("convnet", tmp_path / "image", image_size=SIDE, channels=3, labels=2)
    asked = ("adapt", words, "--task", "image-text", "--data", data, "--budget", "6s", "--no-law")
    more = ("--method", "full", "--set", "lr=2e-3", "--project", tmp_path / "home")
    answer = isoflop(*asked, *more, "--image-model", image, "--json")
    assert answer.code == 0, answer.err
    folder = json.loads(answer.out)["folder"]
    predictions = list(lines(isoflop("apply", folder, "--data", data).out))
    assert len(predictions) == 120
    assert {line["prediction"] for line in predictions} <= {"fits", "odd"}
    assert "120 examples" in isoflop("score", folder, "--data", data).out
    refused(isoflop(*asked, *more), "image-text reads images too")


def test_what_does_not_go_with_a_model_from_scratch(  # type: ignore[no-untyped-def]
    isoflop, pictures: Path, tmp_path: Path
) -> None:
    asked = ("adapt", "vit", "--data", pictures, "--project", tmp_path, "--task")
    refused(isoflop(*asked, "classification"), "vit is an image model from scratch", "classification takes")
    refused(isoflop(*asked, "image-classification", "--method", "lora"), "vit has no weights yet", "lora")
    refused(isoflop(*asked, "image-classification", "--image-model", tmp_path), "takes no image model")
