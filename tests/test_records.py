"""Records go to JSON and back unchanged, stay frozen, and are named by their content."""

import json
import math
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from isoflop import records
from isoflop.records import CorpusConfig, Interval, Record

PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: st.integers(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    Path: st.text("ab./ é", min_size=1).map(Path),
    NoneType: st.none(),
}


class Sample(Record):
    """A record whose digest is pinned below, whatever happens to the real ones."""

    name: str
    shares: dict[str, float]
    sizes: tuple[int, ...] = ()


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a record field's type."""
    arguments = get_args(annotation)
    if isinstance(annotation, UnionType):
        return st.one_of(*map(values, arguments))
    if get_origin(annotation) is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if get_origin(annotation) is tuple:
        return st.tuples(*map(values, arguments))
    if get_origin(annotation) is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    return PLAIN[annotation] if annotation in PLAIN else instances(annotation)


def instances(cls: type[Record]) -> st.SearchStrategy[Record]:
    """Records of a class, every field drawn."""
    return st.builds(cls, **{name: values(field.annotation) for name, field in cls.model_fields.items()})


ALL = [cls for cls in vars(records).values() if isinstance(cls, type) and issubclass(cls, Record)]


@pytest.mark.parametrize("cls", [cls for cls in ALL if cls is not Record])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_json_and_back_is_the_identity(cls: type[Record], data: st.DataObject) -> None:
    record = data.draw(instances(cls))
    again = cls.from_json(record.to_json())
    assert again == record
    assert again.digest() == record.digest()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_diverged_loss_survives_json(value: float) -> None:
    again = Interval.from_json(Interval(value=value, low=0, high=1).to_json())
    assert again.value == pytest.approx(value, nan_ok=True)


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CorpusConfig().seed = 1  # type: ignore[misc]


def test_unknown_fields_are_refused_both_ways() -> None:
    with pytest.raises(ValidationError, match="sead"):
        CorpusConfig(sead=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="sead"):
        CorpusConfig.from_json('{"sead": 1}')


def test_the_digest_is_the_hash_of_the_canonical_json() -> None:
    sample = Sample(name="é", shares={"b": 0.5, "a": 1.0})
    assert json.loads(sample.to_json()) == {"name": "é", "shares": {"b": 0.5, "a": 1.0}, "sizes": []}
    assert sample.digest() == "b260897d854433d3"  # by sha256sum; ids in old ledgers depend on it


def test_the_digest_ignores_order_and_sees_every_value() -> None:
    first = Sample(name="x", shares={"a": 1.0, "b": 0.5})
    assert first.digest() == Sample(shares={"b": 0.5, "a": 1.0}, name="x").digest()
    changes: list[dict[str, object]] = [{"name": "y"}, {"sizes": (1,)}, {"shares": {}}]
    others = {first.model_copy(update=change).digest() for change in changes}
    assert len(others | {first.digest()}) == 4
