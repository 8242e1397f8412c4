"""AIMET's own files: read and written again they are the same, and converted they are AIMET's file of that version.

What a version cannot hold is taken out of AIMET's file before it is compared:

- 2.0.0 and 2.1.0 have 32-bit biases, which older versions have not;
- 0.6.1 and 1.0.0 have `excluded_layers` and `quantizer_args`, which 2.0.0 has not;
- AIMET lists the tensors of 2.0.0 in the order of the graph, of older versions activations first.

The producer goes along, and it is the same in all of AIMET's files.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from qatflow.encodings import convert, from_json, misfits, read, read_model, to_json, validate, with_model, write
from qatflow.errors import EncodingsError
from tests.encodings.golden_files import MODEL, READABLE, WRITABLE, entry_of, golden, golden_path

NEWER = ("2.0.0", "2.1.0")
BIASES = ["conv.bias", "fc.bias"]
ACTIVATIONS = ("x", "/relu/Relu_output_0", "/flat/Flatten_output_0", "y")
WEIGHTS = ("conv.weight", "fc.weight")


def without_what_is_lost(content: dict[str, Any], source: str) -> dict[str, Any]:
    """AIMET's file of one version without what a conversion from another version cannot know."""
    if content["version"] not in NEWER and source in NEWER:
        return {key: value for key, value in content.items() if key not in ("excluded_layers", "quantizer_args")}
    if content["version"] in NEWER and source not in NEWER:
        return content | {"encodings": [one for one in content["encodings"] if one["name"] not in BIASES]}
    return content


def in_any_order(content: dict[str, Any]) -> dict[str, Any]:
    def by_name(value: object) -> object:
        return sorted(value, key=lambda entry: entry["name"]) if isinstance(value, list) and value else value

    return {key: by_name(value) for key, value in content.items()}


@pytest.mark.parametrize("version", WRITABLE)
def test_a_file_of_aimet_is_written_as_it_was_read(version: str, tmp_path: Path) -> None:
    path = write(tmp_path / "again.encodings", read(golden_path(version)), version)
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again == golden(version)
    assert list(again) == list(golden(version))
    assert [type(one) for one in again.values()] == [type(one) for one in golden(version).values()]


def test_version_2_1_0_is_read_like_2_0_0() -> None:
    assert read(golden_path("2.1.0")).tensors == read(golden_path("2.0.0")).tensors
    assert to_json(read(golden_path("2.1.0")), "2.0.0") == golden("2.0.0")
    with pytest.raises(EncodingsError, match=r'^version "2\.1\.0" cannot be written; there are 0\.6\.1, 1\.0\.0, 2'):
        to_json(read(golden_path("2.1.0")), "2.1.0")


@pytest.mark.parametrize("told", [False, True], ids=["without model", "with model"])
@pytest.mark.parametrize("target", WRITABLE)
@pytest.mark.parametrize("source", READABLE)
def test_converted_it_is_aimets_file_of_the_other_version(source: str, target: str, told: bool) -> None:
    converted, _ = convert(read(golden_path(source)), target, read_model(MODEL) if told else None)
    assert converted.version == target
    assert in_any_order(to_json(converted, target)) == in_any_order(without_what_is_lost(golden(target), source))


@pytest.mark.parametrize("source", ["0.6.1", "1.0.0"])
@pytest.mark.parametrize("target", ["0.6.1", "1.0.0"])
def test_between_the_older_versions_nothing_is_lost_not_even_the_order(source: str, target: str) -> None:
    converted, notes = convert(read(golden_path(source)), target)
    assert notes == []
    assert json.dumps(to_json(converted, target)) == json.dumps(golden(target))


def test_what_an_older_version_cannot_hold_is_noted() -> None:
    lost = "0.6.1 has excluded_layers and quantizer_args; 2.0.0 tells neither: they are left out"
    biases = '0.6.1 has no 32-bit biases; left out: "conv.bias", "fc.bias"'
    assert convert(read(golden_path("2.0.0")), "0.6.1", read_model(MODEL))[1] == [lost, biases]
    notes = convert(read(golden_path("2.0.0")), "0.6.1")[1]
    assert notes[:2] == [lost, biases]
    assert notes[2].startswith("2.0.0 does not tell parameters from activations")
    assert len(notes) == 3


def test_what_a_newer_version_cannot_hold_is_noted() -> None:
    no_biases = "1.0.0 has no 32-bit biases: none are written, the runtime finds them itself"
    lost = "2.0.0 has no quantizer_args: left out"
    assert convert(read(golden_path("1.0.0")), "2.0.0", read_model(MODEL))[1] == [no_biases, lost]
    content = golden("1.0.0") | {"excluded_layers": ["head"]}
    content["activation_encodings"].append({"name": "z", "dtype": "FLOAT", "bw": 16, "enc_type": "PER_TENSOR"})
    assert convert(from_json(content), "2.0.0")[1] == [
        no_biases,
        '2.0.0 has no entries for tensors in float; left out: "z"',
        "2.0.0 has no excluded_layers: left out",
        lost,
        "1.0.0 does not tell the axis of scales per channel: 0 was taken, a model would tell it: "
        '"conv.weight", "fc.weight"',
    ]


def test_an_axis_and_a_sign_that_an_older_version_does_not_tell_are_noted() -> None:
    content = golden("2.0.0")
    entry_of(content, "x").update(output_dtype="int8", y_zero_point=-10)
    entry_of(content, "fc.weight")["axis"] = 1
    converted, notes = convert(from_json(content), "1.0.0")
    assert '1.0.0 does not tell signed from unsigned; read back as unsigned: "x"' in notes
    assert '1.0.0 does not tell the axis of scales per channel; other than 0: "fc.weight" (1)' in notes
    assert entry_of(to_json(converted, "1.0.0"), "x")["offset"] == [-118]


def test_versions_in_onnx_terms_say_which_grid_a_tensor_has() -> None:
    tensors = {tensor.name: tensor for tensor in read(golden_path("2.0.0")).tensors}
    assert [tensors[name].role for name in (*ACTIVATIONS, *WEIGHTS, *BIASES)] == (
        ["activation"] * 4 + ["parameter"] * 2 + ["bias"] * 2
    )
    assert (tensors["x"].qmin, tensors["x"].qmax, tensors["x"].offsets) == (0, 255, (-118,))
    assert (tensors["conv.weight"].qmin, tensors["conv.weight"].qmax) == (-128, 127)
    assert tensors["conv.weight"].offsets == (-128, -128)
    assert (tensors["fc.bias"].bits, tensors["fc.bias"].axis) == (32, 0)


@pytest.mark.parametrize(
    ("in_2_0_0", "offset", "symmetric"),
    [
        ({"output_dtype": "int8", "y_scale": 0.02}, -128, True),
        ({"output_dtype": "uint8", "y_scale": 0.02, "y_zero_point": 10}, -10, False),
        ({"output_dtype": "int8", "y_scale": 0.02, "y_zero_point": -118}, -10, False),
        ({"output_dtype": "uint8", "y_scale": 0.02, "y_zero_point": 128}, -128, False),
        ({"output_dtype": "int4", "y_scale": 0.02}, -8, True),
        ({"output_dtype": "uint16", "y_scale": 0.02, "y_zero_point": 7}, -7, False),
        ({"output_dtype": "int16", "y_scale": 0.02}, -32768, True),
    ],
)
def test_one_encoding_has_aimets_offset_in_every_version(in_2_0_0: dict, offset: int, symmetric: bool) -> None:
    file = from_json({"version": "2.0.0", "encodings": [{"name": "t", **in_2_0_0}]})
    as_1_0_0 = entry_of(to_json(convert(file, "1.0.0")[0], "1.0.0"), "t")
    as_0_6_1 = entry_of(to_json(convert(file, "0.6.1")[0], "0.6.1"), "t")
    assert (as_1_0_0["offset"], as_1_0_0["is_sym"]) == ([offset], symmetric)
    assert (as_0_6_1["offset"], as_0_6_1["is_symmetric"]) == (offset, str(symmetric))
    top = offset + 2 ** as_1_0_0["bw"] - 1
    assert (as_0_6_1["min"], as_0_6_1["max"]) == pytest.approx((0.02 * offset, 0.02 * top), rel=1e-6)


@pytest.mark.parametrize("version", READABLE)
def test_aimets_files_are_sound_and_cover_aimets_model(version: str) -> None:
    model = read_model(MODEL)
    assert model.activations == ("x", "/relu/Relu_output_0", "/flat/Flatten_output_0", "y")
    assert model.parameters == WEIGHTS
    file = with_model(read(golden_path(version)), model)
    assert misfits(file, model) == []
    found = validate(file, activations=model.activations, parameters=model.parameters, optional=model.tensors)
    assert found.ok
