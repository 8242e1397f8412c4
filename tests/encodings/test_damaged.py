"""Damaged and foreign files: all that is wrong is in one error, which names file and field; nothing else is raised."""

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qatflow.errors import EncodingsError
from qatflow.export.encodings import (
    EncodingsFile,
    TensorEncoding,
    convert,
    from_json,
    misfits,
    read,
    read_model,
    to_json,
    validate,
    with_model,
    write,
)
from qatflow.export.encodings.onnx_model import ModelFacts
from tests.encodings.golden_files import MODEL, READABLE, WRITABLE, entry_of, golden

SUPPORTED = "is not supported; supported are integers with one scale per tensor or per channel, and 16 or 32-bit float"


def problems(content: object) -> list[str]:
    with pytest.raises(EncodingsError) as caught:
        from_json(content)
    return str(caught.value).split("; ")


def message(content: object) -> str:
    with pytest.raises(EncodingsError) as caught:
        from_json(content)
    return str(caught.value)


def damaged(version: str, name: str, **fields: object) -> dict[str, Any]:
    """A golden file with other fields in the entry of one tensor; `...` removes one."""
    content = golden(version)
    entry = entry_of(content, name)
    entry.update(fields)
    for key in [key for key, value in fields.items() if value is ...]:
        del entry[key]
    return content


@pytest.mark.parametrize("content", [None, True, 3, 1.5, "text", [], [1], float("nan")])
def test_what_is_no_object_is_told(content: object) -> None:
    assert "expected an object" in message(content)


@pytest.mark.parametrize(
    "content", [{}, {"version": None}, {"version": "0.5.0"}, {"version": 2}, {"version": ["1.0.0"]}]
)
def test_another_version_is_told_with_those_that_can_be_read(content: object) -> None:
    assert message(content).endswith('expected "0.6.1" or "1.0.0" or "2.0.0" or "2.1.0"')


@pytest.mark.parametrize(
    "content",
    [{"version": 10**5000}, {"version": {1, 2}}, {"version": b"1.0.0"}, {1, 2}],
    ids=["too many digits", "a set", "bytes", "a set alone"],
)
def test_what_cannot_be_shown_is_told_all_the_same(content: object) -> None:
    assert "cannot be shown" in message(content)


def test_all_problems_of_a_file_are_in_one_error_with_file_and_field(tmp_path: Path) -> None:
    content = damaged("1.0.0", "x", bw=1, is_sym="False", scale=..., extra=1)
    entry_of(content, "y").update(offset=[-130.5], dtype="int")
    del entry_of(content, "conv.weight")["enc_type"]
    entry_of(content, "conv.weight")["bw"] = 64
    entry_of(content, "fc.weight")["enc_type"] = "PER_ROW\n" + "x" * 100
    content["excluded_layers"] = "none"
    content["new"] = {}
    path = tmp_path / "bad.encodings"
    path.write_text(json.dumps(content))
    with pytest.raises(EncodingsError) as caught:
        read(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    for wanted in (
        'activation_encodings[0] "x": bw is 1; expected a whole number from 2 to 32',
        'activation_encodings[0] "x": is_sym is "False"; expected true or false',
        'activation_encodings[0] "x": scale is missing; expected a list of numbers',
        'activation_encodings[0] "x": field "extra" is not known; expected name, dtype, bw, is_sym',
        'activation_encodings[2] "y": offset is [-130.5]; expected a list of whole numbers',
        'activation_encodings[2] "y": dtype is "int"; expected "INT" or "FLOAT"',
        'param_encodings[0] "conv.weight": enc_type is missing; expected text',
        'param_encodings[0] "conv.weight": bw is 64; expected a whole number from 2 to 32',
        'param_encodings[1] "fc.weight": enc_type "PER_ROW\\nxxx',
        'excluded_layers is "none"; expected a list of names',
        'field "new" is not known; expected producer, version, activation_encodings, param_encodings',
    ):
        assert wanted in told
    assert "\n" not in told


def test_all_problems_of_a_file_of_0_6_1_are_in_one_error() -> None:
    content = damaged("0.6.1", "x", bitwidth="8", is_symmetric=False, min=...)
    entry_of(content, "conv.weight")["bitwidth"] = 4
    content["activation_encodings"]["y"] = []
    content["activation_encodings"][""] = content["activation_encodings"]["/relu/Relu_output_0"]
    content["param_encodings"]["fc.weight"].append(7)
    content["param_encodings"]["fc.weight"][0]["offset"] = None
    told = message(content)
    for wanted in (
        'activation_encodings "x"[0]: bitwidth is "8"; expected a whole number from 2 to 32',
        'activation_encodings "x"[0]: is_symmetric is false; expected "True" or "False"',
        'activation_encodings "x"[0]: min is missing; expected a number',
        'activation_encodings "y": is []; expected a list with one object per scale',
        'activation_encodings "": has no name',
        'param_encodings "conv.weight": bitwidth differs between channels; expected the same for all',
        'param_encodings "fc.weight"[2]: is 7; expected an object',
        'param_encodings "fc.weight"[0]: offset is null; expected a whole number',
    ):
        assert wanted in told


def test_all_problems_of_a_file_of_2_0_0_are_in_one_error() -> None:
    content = damaged("2.0.0", "x", y_scale="1", output_dtype="uint8")
    entry_of(content, "y").update(y_zero_point=1.5, axis=0)
    entry_of(content, "conv.weight").update(axis=-1)
    entry_of(content, "fc.weight").update(output_dtype="float8e4m3fn")
    del entry_of(content, "fc.weight")["y_scale"]
    content["encodings"].append("z")
    content["param_encodings"] = []
    told = message(content)
    for wanted in (
        'encodings[2] "x": y_scale is "1"; expected a number or a list of numbers',
        'encodings[6] "y": expected axis and a list in y_scale, or neither',
        'encodings[6] "y": y_zero_point is 1.5; expected a whole number',
        'encodings[0] "conv.weight": axis is -1; expected a whole number from 0',
        'encodings[4] "fc.weight": y_scale is missing; expected a number or a list of numbers',
        'encodings[4] "fc.weight": output_dtype "float8e4m3fn" is not supported',
        'encodings[8]: is "z"; expected an object',
        'field "param_encodings" is not known; expected producer, version, encodings',
    ):
        assert wanted in told


UNSUPPORTED = [
    (damaged("0.6.1", "x", zero_point_shift=0.5), "a grid moved by half a step (zero_point_shift)"),
    (damaged("1.0.0", "conv.weight", zero_point_shift=[0.5, 0.5]), "a grid moved by half a step (zero_point_shift)"),
    (damaged("1.0.0", "conv.weight", enc_type="PER_BLOCK"), "PER_BLOCK"),
    (damaged("1.0.0", "conv.weight", enc_type="PER_BLOCK", block_size=16), "one scale per block (block_size)"),
    (damaged("1.0.0", "conv.weight", enc_type="LPBQ"), "LPBQ"),
    (
        damaged("1.0.0", "conv.weight", enc_type="LPBQ", compressed_bw=4, per_block_int_scale=[1, 2]),
        "LPBQ (compressed_bw), LPBQ (per_block_int_scale)",
    ),
    (damaged("1.0.0", "conv.weight", enc_type="VECTOR"), "VECTOR"),
    (
        damaged("1.0.0", "conv.weight", enc_type="VECTOR", rows_per_block=1, index_bw=6),
        "VECTOR (rows_per_block), VECTOR (index_bw)",
    ),
    (damaged("1.0.0", "x", enc_type="PER_CHANNEL"), "an activation with one scale per channel"),
    (damaged("2.0.0", "conv.weight", block_size=16), "one scale per block (block_size)"),
    (damaged("2.0.0", "conv.weight", y_scale=[[0.1, 0.2], [0.3, 0.4]]), "PER_BLOCK (nested lists in y_scale)"),
    (
        damaged("2.0.0", "conv.weight", y_scale=..., per_block_int_scale=[[1]], per_channel_float_scale=[0.1]),
        "LPBQ (per_block_int_scale), LPBQ (per_channel_float_scale)",
    ),
    (
        damaged("2.1.0", "conv.weight", y_scale={"x": [[1]], "x_scale": [0.1], "axis": 0}),
        "LPBQ (an object in y_scale)",
    ),
    (damaged("2.0.0", "x", output_dtype="float8e4m3fn", y_scale=1.0), 'output_dtype "float8e4m3fn"'),
    (damaged("2.0.0", "x", output_dtype="int64"), 'output_dtype "int64"'),
    (damaged("2.0.0", "x", output_dtype="int08"), 'output_dtype "int08"'),
]


@pytest.mark.parametrize(("content", "kind"), UNSUPPORTED, ids=[kind for _, kind in UNSUPPORTED])
def test_a_kind_that_is_not_supported_is_named(content: dict, kind: str) -> None:
    told = message(content)
    assert f": {kind} {SUPPORTED}" in told
    assert '"conv.weight"' in told or '"x"' in told


def test_fp8_of_1_0_0_is_told_by_its_width() -> None:
    content = golden("1.0.0")
    content["activation_encodings"] = [{"name": "x", "dtype": "FLOAT", "bw": 8, "enc_type": "PER_TENSOR"}]
    assert problems(content) == ['activation_encodings[0] "x": bw is 8', "expected 16 or 32"]


def test_numbers_that_contradict_one_another_are_read_and_then_found_wrong() -> None:
    content = damaged("1.0.0", "x", scale=[float("nan")])
    entry_of(content, "y")["offset"] = [-256]
    entry_of(content, "conv.weight")["scale"] = [0.1, -0.1]
    entry_of(content, "fc.weight")["offset"] = [-128]
    content["activation_encodings"].append(entry_of(golden("1.0.0"), "/relu/Relu_output_0"))
    file = from_json(content)
    assert validate(file).wrong == (
        '"/relu/Relu_output_0": has 2 entries; expected one',
        '"x": scale is nan; expected a positive, finite number',
        '"y": zero point is 256, off the grid; expected 0 to 255, offsets from -255 to 0',
        '"conv.weight": scale is -0.1; expected a positive, finite number',
        '"fc.weight": 2 scales and 1 offsets; expected as many of both',
    )
    for version in WRITABLE:
        with pytest.raises(EncodingsError, match=r'"x": scale is nan.*"fc.weight": 2 scales'):
            to_json(file, version)
        with pytest.raises(EncodingsError, match=r'"x": scale is nan.*"fc.weight": 2 scales'):
            convert(file, version)


def test_ranges_that_do_not_go_with_scale_and_offset_are_found_wrong() -> None:
    file = from_json(damaged("0.6.1", "x", max=3.0))
    assert validate(file).wrong == (
        '"x": min -2.32204 and max 3 do not go with scale 0.0196783 and offset -118; '
        "expected about -2.32204 and 2.69593",
    )
    assert validate(from_json(damaged("0.6.1", "x", min=float("nan")))).wrong
    assert validate(from_json(damaged("0.6.1", "x", max=2.697))).ok


def test_coverage_tells_missing_unknown_and_those_in_the_wrong_place() -> None:
    file = from_json(golden("1.0.0"))
    found = validate(file, activations=("x", "y", "conv.weight", "z"), parameters=("fc.weight",), optional=("n",))
    assert found.wrong == ('"conv.weight": is listed as a parameter; expected an activation',)
    assert found.missing == ("z",)
    assert found.unknown == ("/relu/Relu_output_0", "/flat/Flatten_output_0")
    assert not found.ok


def test_other_channels_than_the_models_are_told() -> None:
    content = damaged("1.0.0", "conv.weight", scale=[0.1] * 3, offset=[-128] * 3)
    model = read_model(MODEL)
    wanted = '"conv.weight": has 3 scales along axis 0, but the model\'s tensor has shape [2, 3, 3, 3]'
    assert misfits(with_model(from_json(content), model), model) == [wanted]
    with pytest.raises(EncodingsError) as caught:
        convert(from_json(content), "2.0.0", model)
    assert str(caught.value) == wanted


def scalar_weight_facts() -> ModelFacts:
    return ModelFacts({"conv.weight": ()}, {"conv.weight": 0}, (), ("conv.weight",), frozenset(("conv.weight",)))


def test_a_weight_without_axes_has_no_channels() -> None:
    found = misfits(from_json(golden("1.0.0")), scalar_weight_facts())
    assert found == ['"conv.weight": has 2 scales along axis 0, but the model\'s tensor has shape []']


@pytest.mark.parametrize("version", ["0.6.2", "2.1.0", "", "latest"])
def test_a_version_that_cannot_be_written_is_told(version: str, tmp_path: Path) -> None:
    file = from_json(golden("1.0.0"))
    for act in (
        lambda: to_json(file, version),
        lambda: convert(file, version),
        lambda: write(tmp_path / "a", file, version),
    ):
        with pytest.raises(EncodingsError, match=r"cannot be written; there are 0\.6\.1, 1\.0\.0, 2\.0\.0$"):
            act()
    assert not list(tmp_path.iterdir())


# Files that are no files, or no JSON.


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"),
        (b"PK\x03\x04", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b'{"version": "1.0.0"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"version": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"null", "expected an object"),
        (b'{"version": "1.0.0", "version": "1.0.0"}', '"version" is there 2 times; expected once'),
    ],
)
def test_what_is_no_encodings_file_is_told_with_its_name(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "some.encodings"
    path.write_bytes(content)
    with pytest.raises(EncodingsError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert why in str(caught.value)


@pytest.mark.parametrize("depth", range(900, 1000, 3))
def test_deep_nesting_is_told_wherever_the_limit_is_reached(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "deep.encodings"
    path.write_text('{"version": "1.0.0", "param_encodings": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(EncodingsError, match=r"deep\.encodings"):
        read(path)


def test_a_file_that_is_not_there_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(EncodingsError, match=r"^cannot read .*/nowhere: No such file or directory$"):
        read(tmp_path / "nowhere")
    with pytest.raises(EncodingsError, match=r"^cannot read .*: Is a directory$"):
        read(tmp_path)
    with pytest.raises(EncodingsError, match=r"^cannot write .*: Is a directory$"):
        write(tmp_path, from_json(golden("1.0.0")), "1.0.0")
    (tmp_path / "file").write_text("")
    with pytest.raises(EncodingsError, match=r"^cannot write .*/file/a: "):
        write(tmp_path / "file" / "a", from_json(golden("1.0.0")), "1.0.0")


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "windows.encodings"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(golden("1.0.0")).encode())
    assert read(path) == from_json(golden("1.0.0"))


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    content = golden("1.0.0")
    content["quantizer_args"]["quant_scheme"] = float("nan")
    with pytest.raises(EncodingsError, match=r"cannot write .*a: a number is not finite"):
        write(tmp_path / "a", from_json(content), "1.0.0")
    huge = TensorEncoding(name="x", role="activation", bits=8, scales=(1e308,), zero_points=(0,))
    with pytest.raises(EncodingsError, match="a number is not finite"):
        write(tmp_path / "a", EncodingsFile(version="0.6.1", tensors=(huge,)), "0.6.1")
    assert not list(tmp_path.iterdir())


# Models that are no models.


@pytest.mark.parametrize("name", ["m.onnx", "m.json", "m.onnxtxt", "m.textproto", "m"])
@pytest.mark.parametrize("content", [b"", b"{}", b"no model", b"\x08\x01"])
def test_what_is_no_onnx_model_is_told_whatever_it_is_called(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EncodingsError, match=r"is no ONNX model"):
        read_model(tmp_path / name)


def test_a_model_with_ops_that_lack_inputs_and_outputs_is_read(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    constant = helper.make_tensor("c", TensorProto.FLOAT, [], [1.0])
    nodes = [
        helper.make_node("Conv", ["x"], ["a"]),
        helper.make_node("Constant", [], [], value=constant),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [helper.make_tensor("w", TensorProto.FLOAT, [], [1.0])])
    onnx.save(helper.make_model(graph), tmp_path / "odd.onnx")
    found = read_model(tmp_path / "odd.onnx")
    assert (found.activations, found.parameters, found.axes) == (("x", "a", "y"), ("w",), {"w": 0})


# Any JSON value.


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((0, 8, -128, 2**70, 10**400))
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(("1.0.0", "INT", "FLOAT", "PER_CHANNEL", "int", "float", "int8", "int32", "True")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("name", "scale", "bw", "y_scale", "axis")) | st.text(max_size=3), inner)
    ),
    max_leaves=6,
)


def places(value: Any, setters: list[Callable[[Any], None]], removers: list[Callable[[], None]]) -> None:
    """List what can be done to a value: every part of it can be replaced or removed."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        setters.append(lambda new, key=key: value.__setitem__(key, new))
        removers.append(lambda key=key: value.__delitem__(key))
        places(value[key], setters, removers)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    content = copy.deepcopy(golden(draw(st.sampled_from(READABLE))))
    for _ in range(draw(st.integers(1, 3))):
        setters: list[Callable[[Any], None]] = []
        removers: list[Callable[[], None]] = []
        places(content, setters, removers)
        index = draw(st.integers(0, len(setters) - 1))
        if draw(st.integers(0, 3)):
            setters[index](draw(json_values))
        else:
            removers[index]()
    return content


def try_everything(content: object, model: ModelFacts) -> None:
    with contextlib.suppress(EncodingsError):
        file = from_json(content)
        sound = validate(file).ok
        validate(with_model(file, model), activations=model.activations, parameters=model.parameters)
        misfits(with_model(file, model), model)
        for version in WRITABLE:
            for known in (None, model):
                with contextlib.suppress(EncodingsError):
                    converted, _ = convert(file, version, known)
                    assert sound
                    written = to_json(converted, version)
                    assert from_json(written).version == version


@pytest.fixture(scope="module")
def model() -> ModelFacts:
    return read_model(MODEL)


@given(content=mutated())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_mutated_file_raises_nothing_but_encodings_errors(content: Any, model: ModelFacts) -> None:
    try_everything(content, model)


@given(content=json_values)
@settings(max_examples=50, deadline=None)
def test_any_json_value_raises_nothing_but_encodings_errors(content: Any, model: ModelFacts) -> None:
    try_everything(content, model)


@given(content=st.binary(max_size=60) | mutated().map(lambda value: json.dumps(value).encode()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_raises_nothing_but_encodings_errors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.encodings"
    path.write_bytes(content)
    with contextlib.suppress(EncodingsError):
        file = read(path)
        for version in WRITABLE:
            with contextlib.suppress(EncodingsError):
                write(tmp_path / "out.encodings", file, version)
                read(tmp_path / "out.encodings")


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear"])
@pytest.mark.parametrize("field", ["input", "output"])
def test_a_pair_without_what_it_needs_is_told(tmp_path: Path, field: str, op: str) -> None:
    import onnx

    model = onnx.load(MODEL)
    model.graph.node[0].op_type = op
    model.graph.node[0].name = "first"
    model.graph.node[0].ClearField(field)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EncodingsError) as caught:
        read_model(path)
    assert str(caught.value) == f"{path} is no valid ONNX model: its {op} 'first' lacks inputs or its output"


@pytest.mark.parametrize("axis", [-9, -1, 9])
def test_an_axis_that_a_tensor_does_not_have_is_a_misfit(axis: int) -> None:
    tensor = TensorEncoding(name="w", role="parameter", bits=8, scales=(1.0, 1.0), zero_points=(0, 0), axis=axis)
    model = ModelFacts({"w": (3, 4)}, {}, (), ("w",), frozenset({"w"}))
    (found,) = misfits(EncodingsFile(version="1.0.0", tensors=(tensor,)), model)
    assert found == f'"w": has 2 scales along axis {axis}, but the model\'s tensor has shape [3, 4]'
