"""Plans on a cluster from the command line; good input and bad."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from e2e.commands import refused

Words = tuple[object, ...]
Said = tuple[str, ...]
PLAN = ("plan", "--cluster", "1024xH100")


def test_days_become_a_model_its_layout_and_its_cost(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    answer = isoflop(*PLAN, "--days", 30, "--launch", tmp_path / "launch", "--json")
    assert answer.code == 0, answer.err
    plan = json.loads(answer.out)
    best = plan["found"]["best"][0]
    assert plan["days"] == pytest.approx(30)
    assert plan["device_hours"] == pytest.approx(1024 * 30 * 24)
    assert plan["usd"] == pytest.approx(plan["device_hours"] * plan["cluster"]["usd_per_hour"])
    reached = plan["flops"] / (0.9 * 30 * 86400 * 1024 * plan["cluster"]["peak_flops"])
    assert reached == pytest.approx(best["mfu"], rel=1e-6)
    assert 0.3 < reached < 0.6
    assert plan["flops"] == pytest.approx(6 * plan["params_active"] * plan["tokens"], rel=0.2)
    assert len(plan["found"]["best"]) == 3
    assert any("extrapolated" in note for note in plan["notes"])
    titan = tomllib.loads((tmp_path / "launch/torchtitan.toml").read_text())
    degrees = [titan["parallelism"][name] for name in (
        "data_parallel_replicate_degree", "data_parallel_shard_degree", "tensor_parallel_degree",
        "pipeline_parallel_degree", "context_parallel_degree",
    )]  # fmt: skip
    product = 1
    for degree in degrees:
        product *= degree
    assert product == 1024
    assert titan["training"]["global_batch_size"] * titan["training"]["seq_len"] == best["step_tokens"]
    assert plan["launch"] == [str(tmp_path / "launch" / name) for name in ("torchtitan.toml", "isoflop.sh")]


def test_what_is_printed_names_everything(isoflop) -> None:  # type: ignore[no-untyped-def]
    answer = isoflop(*PLAN, "--flops", "1e24", "--experts", 64, "--price", 2)
    assert answer.code == 0, answer.err
    for words in (
        "64 experts", "parameters, all", "USD, at 2 an hour (as given)", "energy, MWh", "CO2, t",
        "loss by besiroglu-2024", "The best of", "activations", "Other kinds, the simplest first:",
        "GB a device at least", "A node does not hold it", "of dense models",
    ):  # fmt: skip
        assert words in answer.out


def test_serving_is_printed_where_a_node_holds_the_model(isoflop) -> None:  # type: ignore[no-untyped-def]
    out = isoflop("plan", "--cluster", "64xMI300X", "--flops", "1e22").out
    for words in ("USD per M written", "bandwidth", "of other generations"):
        assert words in out


def test_parameters_and_tokens_can_be_given(isoflop) -> None:  # type: ignore[no-untyped-def]
    """Llama 3.1 405B took 30.84 million device-hours by its model card: 78 days on 16,384."""
    words = ("--params", "405B", "--tokens", "15.6T")
    plan = json.loads(isoflop("plan", "--cluster", "16384xH100", *words, "--json").out)
    assert plan["params_active"] == pytest.approx(405e9, rel=0.05)
    assert plan["tokens"] == 15.6e12
    assert plan["days"] == pytest.approx(78.4, rel=0.15)
    half = json.loads(isoflop(*PLAN, "--days", 30, "--tokens", "1T", "--json").out)
    assert half["tokens"] == 1e12
    assert half["days"] == pytest.approx(30, rel=0.1)


def test_a_law_of_ones_own_is_named(isoflop) -> None:  # type: ignore[no-untyped-def]
    plan = json.loads(isoflop("plan", "hoffmann-2022", "--cluster", "64xA100", "--days", 3, "--json").out)
    assert plan["law"] == "hoffmann-2022"
    assert plan["cluster"]["accelerator"]["generation"] == "Ampere"


def test_our_trainer_takes_the_options_that_are_written(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from isoflop.variant import Variant

    assert isoflop("plan", "--cluster", "8xA100", "--days", 1, "--launch", tmp_path).code == 0
    script = (tmp_path / "isoflop.sh").read_text()
    words = script.split()
    assert "--nproc-per-node 8" in script
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    variant = Variant.of(Variant().family, changes)
    shape = variant.shape(256, 512)
    assert shape.context == 8192
    assert variant.config(shape, 0).batch_tokens % 8192 == 0
    known = isoflop("train", "--help").out
    for option in {word for word in words[words.index("train") :] if word.startswith("--")}:
        assert option in known


def test_an_odd_number_of_devices_has_as_many_processes(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert isoflop("plan", "--cluster", "12xH100", "--days", 1, "--launch", tmp_path).code == 0
    assert "--nnodes 3 --nproc-per-node 4" in (tmp_path / "isoflop.sh").read_text()


def test_nothing_is_launched_for_our_trainer_where_it_cannot(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("--flops", "1e24", "--experts", 64, "--launch", tmp_path)
    assert "Not for isoflop train" in isoflop(*PLAN, *words).out
    assert [path.name for path in tmp_path.iterdir()] == ["torchtitan.toml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cluster", "1024xH1000", "--days", 3), ("H1000",)),
        (("--cluster", "H100", "--days", 3), ("'H100' is no cluster",)),
        (("--cluster", "0xH100", "--days", 3), ("0 devices",)),
        (("--cluster", "8xH100"), ("not said",)),
        (("--cluster", "8xH100", "--days", 3, "--flops", "1e20"), ("said twice",)),
        (("--cluster", "8xH100", "--params", "7B"), ("not said",)),
        (("--cluster", "8xH100", "--days", "-1"), ("--days is -1",)),
        (("--cluster", "8xH100", "--params", "405B", "--tokens", "1T"), ("do not fit on 8 x NVIDIA H100",)),
        (("--cluster", "8xH100", "--days", 3, "--budget", "2h"), ("--budget", "--cluster")),
        (("--cluster", "8xH100", "--days", 3, "--max-params", "7B"), ("--max-params", "--cluster")),
        (("--cluster", "8xTPUv1", "--days", 3), ("not known",)),
        (("--days", 3), ("--days", "--cluster")),
        (("besiroglu-2024", "--flops", "1e20", "--context", 4096), ("--context", "--cluster")),
        (("nothing-2024", "--cluster", "8xH100", "--days", 3), ("nothing-2024",)),
        (("--cluster", "8xH100", "--flops", "1e10"), ("parameters",)),
    ],
)
def test_bad_input_is_refused(isoflop, words: Words, said: Said) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("plan", *words), *said)


def test_a_file_is_no_folder_for_launch_files(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "file"
    path.write_text("")
    refused(isoflop(*PLAN, "--days", 3, "--launch", path), "cannot be written")
