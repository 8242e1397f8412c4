"""What a version can hold comes back equal, for every file and not only for AIMET's."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatflow.export.encodings import EncodingsFile, TensorEncoding, convert, from_json, to_json, validate
from tests.encodings.golden_files import WRITABLE

LEGACY = ("0.6.1", "1.0.0")
scales = st.floats(1e-30, 1e30, allow_nan=False)
plain = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=3)


@st.composite
def tensors(draw: st.DrawFn, version: str) -> TensorEncoding:
    """A tensor that a version can hold, as its reader describes it."""
    name = draw(st.text(min_size=1, max_size=8))
    role = draw(st.sampled_from(("activation", "parameter")))
    if version in LEGACY and draw(st.booleans()):
        return TensorEncoding(name=name, role=role, bits=draw(st.sampled_from((16, 32))), in_float=True)
    fewest = 2 if version == "0.6.1" else 1  # a list with one entry is one scale for the tensor there
    count = draw(st.integers(fewest, 4)) if role == "parameter" else 1
    per_channel = role == "parameter" and (count > 1 or draw(st.booleans())) and count >= fewest
    bits = draw(st.integers(2, 31))
    signed, symmetric, zero_points = draw(grids(version, bits, role, per_channel, count))
    return TensorEncoding(
        name=name,
        role=role,
        bits=bits,
        signed=signed,
        symmetric=symmetric,
        scales=tuple(draw(st.lists(scales, min_size=count, max_size=count))),
        zero_points=zero_points,
        axis=(draw(st.integers(0, 3)) if version not in LEGACY else 0) if per_channel else None,
    )


@st.composite
def grids(
    draw: st.DrawFn, version: str, bits: int, role: str, per_channel: bool, count: int
) -> tuple[bool, bool, tuple[int, ...]]:
    """Signedness, symmetry and zero points that a version tells apart."""
    centred = (0,) * count
    if version in LEGACY:  # symmetric and in the middle is signed, everything else unsigned
        if draw(st.booleans()):
            return True, True, centred
        symmetric = draw(st.booleans())
        fits = st.integers(0, 2**bits - 1).filter(lambda one: not symmetric or one != 2 ** (bits - 1))
        return False, symmetric, tuple(draw(st.lists(fits, min_size=count, max_size=count)))
    if role == "parameter" and not per_channel:  # told from an activation by a signed grid with no zero point
        return True, True, centred
    signed = draw(st.booleans())
    low = -(2 ** (bits - 1)) if signed else 0
    zero_points = tuple(draw(st.lists(st.integers(low, low + 2**bits - 1), min_size=count, max_size=count)))
    if signed and not any(zero_points) and role == "activation":
        zero_points = (low,)
    return signed, signed and not any(zero_points), zero_points


@st.composite
def files(draw: st.DrawFn, version: str) -> EncodingsFile:
    listed = draw(st.lists(tensors(version), max_size=4, unique_by=lambda tensor: tensor.name))
    if version in LEGACY:
        listed.sort(key=lambda tensor: tensor.role)  # their files have activations first
    else:
        wanted = st.tuples(st.text(min_size=1, max_size=8), st.lists(scales, min_size=1, max_size=3))
        for name, found in draw(st.lists(wanted, max_size=2, unique_by=lambda one: one[0])):
            if name not in {tensor.name for tensor in listed}:
                listed.append(bias(name, tuple(found)))
    return EncodingsFile(
        version=version,
        tensors=tuple(listed),
        producer=draw(st.none() | plain),
        excluded_layers=draw(st.none() | st.lists(st.text(min_size=1)).map(tuple)) if version in LEGACY else None,
        quantizer_args=draw(st.none() | plain) if version in LEGACY else None,
    )


def bias(name: str, found: tuple[float, ...]) -> TensorEncoding:
    zeros = (0,) * len(found)
    return TensorEncoding(
        name=name, role="bias", bits=32, signed=True, symmetric=True, scales=found, zero_points=zeros, axis=0
    )


def through(file: EncodingsFile, version: str) -> EncodingsFile:
    """Through the text of a file, without which a number could come back as it was."""
    content: Any = json.loads(json.dumps(to_json(file, version), allow_nan=False))
    return from_json(content)


@pytest.mark.parametrize("version", WRITABLE)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_a_version_can_hold_comes_back_equal(version: str, data: st.DataObject) -> None:
    file = data.draw(files(version))
    assert validate(file).ok
    again = through(file, version)
    assert again == file
    assert validate(again).ok, "the ranges of 0.6.1 go with scale and offset"
    assert to_json(again, version) == to_json(file, version)


@given(files("0.6.1"))
@settings(max_examples=60, deadline=None)
def test_between_the_older_versions_nothing_is_lost(file: EncodingsFile) -> None:
    there, notes = convert(file, "1.0.0")
    back, more_notes = convert(through(there, "1.0.0"), "0.6.1")
    assert (through(back, "0.6.1"), notes, more_notes) == (file, [], [])


@given(st.sampled_from(LEGACY).flatmap(files))
@settings(max_examples=60, deadline=None)
def test_real_numbers_on_the_grid_survive_every_conversion(file: EncodingsFile) -> None:
    """The newer version tells no symmetry of an unsigned grid, no floats, no roles; the grids stay the same."""
    newer = through(convert(file, "2.0.0")[0], "2.0.0")
    integers = [tensor for tensor in file.tensors if not tensor.in_float]
    assert [one.name for one in newer.tensors] == [one.name for one in integers]
    for got, wanted in zip(newer.tensors, integers, strict=True):
        same = ("bits", "signed", "scales", "zero_points", "axis")
        assert [getattr(got, key) for key in same] == [getattr(wanted, key) for key in same]
    older = {one.name: one for one in through(convert(newer, "1.0.0")[0], "1.0.0").tensors}
    assert [older[one.name].offsets for one in integers] == [one.offsets for one in integers]
    assert [older[one.name].scales for one in integers] == [one.scales for one in integers]


@given(files("2.0.0"))
@settings(max_examples=60, deadline=None)
def test_an_older_version_keeps_everything_but_biases_axes_and_signs(file: EncodingsFile) -> None:
    converted, notes = convert(file, "1.0.0")
    older = {one.name: one for one in through(converted, "1.0.0").tensors}
    assert set(older) == {one.name for one in file.tensors if one.role != "bias"}
    assert any("32-bit biases" in note for note in notes) == any(one.role == "bias" for one in file.tensors)
    for wanted in file.tensors:
        if wanted.role == "bias":
            continue
        got = older[wanted.name]
        for key in ("role", "bits", "symmetric", "offsets", "scales"):
            assert getattr(got, key) == getattr(wanted, key), key
        assert (got.axis is None) == (wanted.axis is None)
        if got.signed != wanted.signed:
            assert not wanted.symmetric
            assert any("signed from unsigned" in note for note in notes)
        if wanted.axis:
            assert any(f"({wanted.axis})" in note for note in notes)


def test_one_channel_and_the_whole_tensor_are_the_same_in_0_6_1() -> None:
    one = TensorEncoding(
        name="w", role="parameter", bits=8, signed=True, symmetric=True, scales=(0.1,), zero_points=(0,), axis=0
    )
    file = EncodingsFile(version="0.6.1", tensors=(one,))
    assert through(file, "0.6.1").tensors == (replace(one, axis=None),)
    assert through(file, "1.0.0").tensors == (one,)


@given(st.floats(1e-30, 1e30), st.integers(2, 16), st.data())
def test_ranges_of_0_6_1_are_those_of_single_precision(scale: float, bits: int, data: st.DataObject) -> None:
    zero_point = data.draw(st.integers(0, 2**bits - 1))
    tensor = TensorEncoding(name="t", role="activation", bits=bits, scales=(scale,), zero_points=(zero_point,))
    entry = to_json(EncodingsFile(version="0.6.1", tensors=(tensor,)), "0.6.1")["activation_encodings"]["t"][0]
    assert entry["min"] == pytest.approx(-zero_point * scale, rel=1e-6)
    assert entry["max"] == pytest.approx((2**bits - 1 - zero_point) * scale, rel=1e-6)
    assert math.copysign(1, entry["max"]) == 1
