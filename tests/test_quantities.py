"""Numbers as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import FitError
from isoflop.quantities import BYTES, COUNT, RATE, SECONDS, Quantity


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (COUNT, "7B", 7e9), (COUNT, "1.4T", 1.4e12), (COUNT, "300M", 3e8), (COUNT, "10k", 1e4),
        (COUNT, "7e9", 7e9), (COUNT, "7_000_000_000", 7e9), (COUNT, " 350m ", 3.5e8), (COUNT, "2 G", 2e9),
        (COUNT, "-3", -3.0), (COUNT, ".5", 0.5), (COUNT, "5.76E23", 5.76e23),
        (BYTES, "8GB", 8e9), (BYTES, "8GiB", 8 * 2**30), (BYTES, "512MB", 512e6), (BYTES, "16kB", 16e3),
        (BYTES, "8gb", 8e9), (BYTES, "8e9", 8e9), (BYTES, "1.5TiB", 1.5 * 2**40), (BYTES, "64B", 64.0),
        (SECONDS, "20ms", 0.02), (SECONDS, "0.02", 0.02), (SECONDS, "1.5s", 1.5), (SECONDS, "50us", 5e-5),
        (RATE, "19GB/s", 19e9), (RATE, "1.2TB/s", 1.2e12), (RATE, "9e11", 9e11), (RATE, "2GiB/s", 2 * 2**30),
    ],
)  # fmt: skip
def test_what_people_write(kind: Quantity, text: str, value: float) -> None:
    assert kind.read("--it", text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (COUNT, "many"), (COUNT, "7X"), (COUNT, "7BB"), (COUNT, ""), (COUNT, "1.2.3"), (COUNT, "1e"),
        (COUNT, "nan"), (COUNT, "inf"), (COUNT, "-inf"), (COUNT, "1e999"), (COUNT, "1e300T"), (COUNT, "7,5"),
        (COUNT, "8GB"), (BYTES, "8Gb"), (BYTES, "8GB/s"), (SECONDS, "2h"), (RATE, "900GB"), (RATE, "100Gb/s"),
    ],
)  # fmt: skip
def test_what_is_no_number_names_the_option_and_the_text(kind: Quantity, text: str) -> None:
    with pytest.raises(FitError) as caught:
        kind.read("--max-it", text)
    assert f"--max-it is {text!r}, not {kind.name}" in caught.value.message
    assert kind.examples in caught.value.hint


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back(value: float) -> None:
    assert COUNT.read("--it", repr(value)) == value
