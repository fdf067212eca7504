"""Ids: everything that makes a vector goes into them, nothing else does, and every process computes the same."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from samespace.sdk.identity import CompatibilityRecord, ModelRecord, SpaceRecord, canonical_json, digest
from samespace.sdk.preprocess import Preprocess

MODEL = ModelRecord(
    name="phone",
    role="edge",
    family="residual",
    arguments={"width": 1.5, "depth": [2, 2], "image_size": 64, "dim": 32, "head": {"bias": False}},
    dim=32,
    preprocess=Preprocess(size=64),
    weights_sha256=digest(b"weights"),
)
SPACE = SpaceRecord(name="emoji", founder_model_id=MODEL.model_id, dim=32)


def changed(record: ModelRecord | SpaceRecord, **fields: object) -> ModelRecord | SpaceRecord:
    """The record with other fields, validated anew."""
    return type(record).model_validate({**record.model_dump(), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"family": "mixer"},
        {"arguments": {**MODEL.arguments, "width": 1.25}},
        {"arguments": {**MODEL.arguments, "depth": [2, 3]}},
        {"arguments": {**MODEL.arguments, "head": {"bias": True}}},
        {"arguments": {**MODEL.arguments, "dropout": 0.0}},
        {"arguments": {key: value for key, value in MODEL.arguments.items() if key != "width"}},
        {"dim": 33},
        {"weights_sha256": digest(b"other weights")},
        *(
            {"preprocess": {**MODEL.preprocess.model_dump(), **change}}
            for change in (
                {"size": 65},
                {"fit": "crop"},
                {"background": (0, 0, 0)},
                {"mean": (0.5, 0.5, 0.4)},
                {"std": (0.5, 0.5, 0.4)},
            )
        ),
    ],
    ids=str,
)
def test_whatever_changes_the_vectors_changes_the_model_id(fields: dict[str, object]) -> None:
    assert changed(MODEL, **fields).model_id != MODEL.model_id


@pytest.mark.parametrize("fields", [{"name": "watch"}, {"role": "cloud"}])
def test_what_a_model_is_called_does_not_change_its_id(fields: dict[str, object]) -> None:
    assert changed(MODEL, **fields).model_id == MODEL.model_id


def test_the_order_of_arguments_does_not_matter() -> None:
    assert changed(MODEL, arguments=dict(reversed(MODEL.arguments.items()))).model_id == MODEL.model_id


def test_every_field_of_a_model_but_name_and_role_goes_into_its_id() -> None:
    # So that a field that is added later cannot be forgotten silently.
    hashed = set(MODEL.model_dump(exclude={"name", "role"}))
    assert hashed == set(ModelRecord.model_fields) - {"name", "role"}
    whole = {name: MODEL.model_dump(mode="json")[name] for name in hashed}
    assert MODEL.model_id == "m-" + digest(canonical_json(whole))[:32]


@pytest.mark.parametrize("fields", [{"name": "photos"}, {"dim": 33}, {"founder_model_id": "m-" + "0" * 32}])
def test_every_field_of_a_space_goes_into_its_id(fields: dict[str, object]) -> None:
    assert changed(SPACE, **fields).space_id != SPACE.space_id


def test_a_space_id_contains_its_founders_id() -> None:
    assert MODEL.model_id[2:18] in SPACE.space_id


def test_records_survive_json_with_their_ids() -> None:
    assert ModelRecord.model_validate_json(MODEL.model_dump_json()) == MODEL
    assert ModelRecord.model_validate_json(MODEL.model_dump_json(indent=3)).model_id == MODEL.model_id
    assert SpaceRecord.model_validate_json(SPACE.model_dump_json()).space_id == SPACE.space_id


def test_ids_are_the_same_in_other_processes() -> None:
    script = "import sys; from samespace.sdk.identity import *; print(ModelRecord.model_validate_json(sys.argv[1]).model_id)"
    for seed in ("0", "4711"):
        result = subprocess.run(
            [sys.executable, "-c", script, MODEL.model_dump_json()],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "LC_ALL": "C"},
        )
        assert result.stdout.strip() == MODEL.model_id


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(arguments=st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_any_json_arguments_give_an_id_that_survives_json(arguments: dict[str, object]) -> None:
    record = changed(MODEL, arguments=arguments)
    assert ModelRecord.model_validate_json(record.model_dump_json()).model_id == record.model_id


@given(one=json_values, other=json_values)
def test_canonical_json_tells_values_apart(one: object, other: object) -> None:
    # repr tells 1, 1.0 and True apart, which == does not.
    assert (canonical_json(one) == canonical_json(other)) == (_sorted_repr(one) == _sorted_repr(other))


def _sorted_repr(value: object) -> str:
    if isinstance(value, dict):
        return "dict" + repr(sorted((key, _sorted_repr(inner)) for key, inner in value.items()))
    return repr([_sorted_repr(inner) for inner in value]) if isinstance(value, list) else repr(value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object(), b"bytes", {1, 2}, "\ud800"])
def test_arguments_that_json_cannot_say_are_refused(bad: object) -> None:
    with pytest.raises(ValidationError, match="plain JSON"):
        changed(MODEL, arguments={"width": bad})


def test_a_record_is_not_changed_through_the_arguments_it_was_made_from() -> None:
    arguments = {"depth": [2, 2]}
    record = changed(MODEL, arguments=arguments)
    before = record.model_id
    arguments["depth"].append(9)
    assert record.model_id == before


@pytest.mark.parametrize(
    "fields",
    [
        {"weights_sha256": "abc"},
        {"weights_sha256": digest(b"").upper()},
        {"dim": 1},
        {"normalisation": "none"},
        {"colour": "blue"},
    ],
)
def test_impossible_models_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        changed(MODEL, **fields)


def test_compatibility_records_name_real_ids() -> None:
    record = CompatibilityRecord(
        query_id=MODEL.model_id, gallery_model_id=MODEL.model_id, space_id=SPACE.space_id, verdict="pass", report={"n": 64}
    )
    assert record.measured_at.endswith("+00:00")
    assert CompatibilityRecord.model_validate_json(record.model_dump_json()) == record
    CompatibilityRecord.model_validate({**record.model_dump(), "query_id": digest(b"an artifact")})
    for field, value in (
        ("query_id", "phone"),
        ("space_id", "emoji"),
        ("gallery_model_id", "cloud"),
        ("report", {"r1": float("nan")}),
    ):
        with pytest.raises(ValidationError):
            CompatibilityRecord.model_validate({**record.model_dump(), field: value})
