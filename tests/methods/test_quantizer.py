"""Scales, codes and integer sums, against onnxruntime and against whole numbers in numpy."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from vitcompress.methods import quantizer


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_node(op: str, inputs: list[tuple[str, int]], outputs: list[tuple[str, int]]) -> bytes:
    """An ONNX model of one operator, as bytes."""
    node = helper.make_node(op, [n for n, _ in inputs], [n for n, _ in outputs])
    infos = [
        [helper.make_tensor_value_info(name, kind, None) for name, kind in values]
        for values in (inputs, outputs)
    ]
    graph = helper.make_graph([node], op, *infos)
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


F32, U8 = TensorProto.FLOAT, TensorProto.UINT8
DYNAMIC = onnxruntime.InferenceSession(
    one_node("DynamicQuantizeLinear", [("x", F32)], [("codes", U8), ("scale", F32), ("zero", U8)])
)
STATIC = onnxruntime.InferenceSession(
    one_node("QuantizeLinear", [("x", F32), ("scale", F32), ("zero", U8)], [("codes", U8)])
)

INPUTS = {
    "around zero": randn(7, 33),
    "positive": randn(7, 33).abs() + 3,
    "negative": -randn(7, 33).abs() - 3,
    "nearly positive": randn(7, 33).abs() - 1e-4,
    "nearly negative": 1e-4 - randn(7, 33).abs(),
    "tiny": randn(7, 33) * 1e-20,
    "huge": randn(7, 33) * 1e20,
    "outlier": randn(7, 33) + 1000 * torch.eye(7, 33),
    "zeros": torch.zeros(2, 3),
    "one value": torch.full((2, 3), 0.7),
}


@pytest.mark.parametrize("group", [None, 8])
def test_rows_of_zeros_have_a_scale_that_float16_holds(group: int | None) -> None:
    weight = randn(5, 24)
    weight[2], weight[4, :8] = 0, 0
    scale, multipliers = quantizer.weight_scale(weight, 4, group=group)
    assert quantizer.fits_half(scale)
    step = quantizer.weight_step(scale, multipliers, group, 24)
    rounded = quantizer.round_weight(weight, step, 4) * step
    assert torch.equal(rounded[weight == 0], torch.zeros(32))
    assert float((rounded - weight).abs().max()) < 0.4


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("weighted", [False, True])
def test_the_scale_is_never_worse_than_that_of_the_largest_weight(
    bits: int, weighted: bool
) -> None:
    weight = randn(12, 50) * torch.linspace(0.01, 9, 12)[:, None]
    weight[3, 7] = 100  # an outlier
    importance = randn(50, seed=1).square() if weighted else torch.ones(50)

    def errors(scale: Tensor) -> Tensor:
        rounded = quantizer.round_weight(weight, scale[:, None], bits) * scale[:, None]
        return ((rounded - weight).square() * importance).sum(1)

    largest = weight.abs().amax(1) / quantizer.weight_range(bits)[1]
    best, multipliers = quantizer.weight_scale(weight, bits, importance if weighted else None)
    assert multipliers is None
    assert (errors(best) <= errors(largest)).all()
    if bits < 5:  # clipping pays
        assert errors(best).sum() < 0.97 * errors(largest).sum()


def test_the_importance_of_inputs_moves_the_scale() -> None:
    weight = torch.cat([randn(4, 40), torch.full((4, 1), 8.0)], 1)
    matters = torch.ones(41)
    ignored = matters.clone()
    ignored[-1] = 0
    large, _ = quantizer.weight_scale(weight, 3, 100 * matters - 99 * ignored)
    small, _ = quantizer.weight_scale(weight, 3, ignored)
    assert (small.abs() < large.abs()).all()


def test_a_channel_of_zeros_has_a_scale() -> None:
    for bits, group in ((8, None), (4, None), (4, 2)):
        scale, multipliers = quantizer.weight_scale(torch.zeros(2, 5), bits, None, group)
        step = quantizer.weight_step(scale, multipliers, group, 5)
        assert (step != 0).all()
        assert (quantizer.round_weight(torch.zeros(2, 5), step, bits) == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("inputs", [32, 70])  # whole groups, and a last one that is not full
def test_multipliers_of_groups_are_small_whole_numbers_that_pay(bits: int, inputs: int) -> None:
    weight = randn(12, inputs) * torch.linspace(0.3, 1, inputs)
    scale, multipliers = quantizer.weight_scale(weight, bits, None, 16)
    assert multipliers is not None
    assert multipliers.dtype == torch.int8
    assert multipliers.shape == (-(-inputs // 16), 12)
    assert (multipliers != 0).all()
    low, _ = quantizer.weight_range(bits)
    most = 64 if bits <= 4 else 127
    assert multipliers.abs().max() * -low <= most
    packed = quantizer.pack_multipliers(multipliers)
    assert torch.equal(quantizer.unpack_multipliers(packed, len(multipliers)), multipliers)

    def error(step: Tensor) -> Tensor:
        return (quantizer.round_weight(weight, step, bits) * step - weight).square().sum()

    plain, _ = quantizer.weight_scale(weight, bits)
    assert error(quantizer.weight_step(scale, multipliers, 16, inputs)) < 0.97 * error(
        plain[:, None]
    )


def test_whole_weights_are_codes_times_the_multipliers_of_their_groups() -> None:
    codes = torch.arange(-8, 7).float().repeat(3, 1)  # 3 outputs, 15 inputs
    multipliers = torch.tensor([[1, -2, 3], [4, 5, -6]], dtype=torch.int8)
    packed = quantizer.pack_weight(codes, 4), quantizer.pack_multipliers(multipliers)
    whole = quantizer.whole_weight(*packed, 4, 8, 15)
    assert torch.equal(whole[:, :8], codes[:, :8] * torch.tensor([[1], [-2], [3]]))
    assert torch.equal(whole[:, 8:], codes[:, 8:] * torch.tensor([[4], [5], [-6]]))


@given(bits=st.integers(2, 8), out=st.integers(1, 9), inputs=st.integers(1, 41))
@settings(max_examples=50, deadline=None)
def test_packed_weights_come_back(bits: int, out: int, inputs: int) -> None:
    low, high = quantizer.weight_range(bits)
    generator = torch.Generator().manual_seed(out * 41 + inputs)
    codes = torch.randint(low, high + 1, (out, inputs), generator=generator).float()
    packed = quantizer.pack_weight(codes, bits)
    assert packed.dtype == torch.uint8
    assert torch.equal(quantizer.unpack_weight(packed, bits, inputs), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_extreme_codes_come_back(bits: int) -> None:
    low, high = quantizer.weight_range(bits)
    codes = torch.tensor([[low, 0, high]]).float()
    assert torch.equal(quantizer.unpack_weight(quantizer.pack_weight(codes, bits), bits, 3), codes)


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
def test_dynamic_ranges_are_those_of_onnxruntime(x: Tensor) -> None:
    scale, zero_point = quantizer.activation_parameters(x.amin(), x.amax())
    codes, ort_scale, ort_zero_point = DYNAMIC.run(None, {"x": x.numpy()})
    assert scale.item() == ort_scale.item()
    assert zero_point.item() == ort_zero_point.item()
    ours = quantizer.quantize_activation(x, scale, zero_point) + zero_point
    assert np.array_equal(ours.numpy(), codes)


@pytest.mark.parametrize("zero_point", [0, 1, 100, 128, 255])
@pytest.mark.parametrize("scale", [0.5, 0.037])
def test_static_codes_are_those_of_onnxruntime(scale: float, zero_point: int) -> None:
    halves = (torch.arange(-600, 601) / 2) * scale  # every half, and both ends well passed
    x = torch.cat([halves, randn(1000) * 60 * scale, torch.tensor([1e30, -1e30])])
    feeds = {
        "x": x.numpy(),
        "scale": np.array(scale, "float32"),
        "zero": np.array(zero_point, "uint8"),
    }
    (codes,) = STATIC.run(None, feeds)
    ours = quantizer.quantize_activation(x, torch.tensor(scale), torch.tensor(float(zero_point)))
    assert np.array_equal(ours.numpy() + zero_point, codes)
    assert {0, 255} <= set(codes.tolist())


def reference(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor, x_scale: Tensor, zero_point: int
) -> np.ndarray:
    """The definition, with sums in int64 and one float32 operation after the other."""
    steps = np.rint(x.numpy() / x_scale.numpy()).astype(np.int64)
    x_codes = np.clip(steps + zero_point, 0, 255) - zero_point
    sums = x_codes @ codes.numpy().astype(np.int64).T
    return sums.astype(np.float32) * (x_scale * scale).numpy() + bias.numpy()


@pytest.mark.parametrize(("inputs", "beyond_float32"), [(64, False), (1037, True)])
@pytest.mark.parametrize("zero_point", [0, 93, 255])
def test_integer_sums_are_exact(inputs: int, beyond_float32: bool, zero_point: int) -> None:
    codes = randn(9, inputs).sign() * torch.randint(100, 128, (9, inputs))
    codes[0] = 127
    scale, bias = randn(9, seed=2).abs(), randn(9, seed=3)
    x, x_scale = randn(5, inputs, seed=4), torch.tensor(0.011)
    x[0] = 3.0 if zero_point < 128 else -3.0  # all codes at one end
    given = (x_scale, torch.tensor(float(zero_point)))
    expected = reference(x, codes, scale, bias, x_scale, zero_point)
    assert np.array_equal(quantizer.integer_linear(x, codes, scale, bias, given), expected)
    sums = quantizer.whole_sums(quantizer.quantize_activation(x, *given), codes)
    assert (sums.abs().max() >= 2**24) == beyond_float32


def test_sums_that_float32_cannot_hold_are_rounded_once() -> None:
    x_codes = torch.full((1, 4096), 255.0)
    codes = torch.full((1, 4096), 127.0)
    codes[0, ::3] = 101
    x_codes[0, ::5] = 253
    exact = int((x_codes.long() * codes.long()).sum())
    assert exact > 2**24
    assert quantizer.whole_sums(x_codes, codes).item() == float(np.float32(exact))


def test_without_a_range_that_of_the_input_is_taken() -> None:
    x, codes = randn(3, 4, 16), torch.randint(-127, 128, (5, 16)).float()
    scale, bias = torch.rand(5), randn(5)
    given = quantizer.activation_parameters(x.amin(), x.amax())
    static = quantizer.integer_linear(x, codes, scale, bias, given)
    assert torch.equal(quantizer.integer_linear(x, codes, scale, bias, None), static)
    assert static.shape == (3, 4, 5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_second_term_takes_off_all_but_a_256th_of_the_error(dynamic: bool) -> None:
    x, codes = randn(200, 64), torch.randint(-127, 128, (16, 64)).float()
    scale, bias = torch.full((16,), 0.01), randn(16)
    exact = (x.double() @ (codes * 0.01).double().T + bias).float()
    given = None if dynamic else quantizer.activation_parameters(x.amin(), x.amax())
    one, two = (
        (quantizer.integer_linear(x, codes, scale, bias, given, terms) - exact).square().mean()
        for terms in (1, 2)
    )
    assert 200 < (one / two).sqrt() < 300


def test_two_terms_are_the_sum_of_both_layers() -> None:
    x, codes = randn(6, 10), torch.randint(-127, 128, (4, 10)).float()
    scale, bias = torch.rand(4), randn(4)
    x_scale, zero_point = torch.tensor(0.02), torch.tensor(120.0)
    x_codes = quantizer.quantize_activation(x, x_scale, zero_point)
    excess_codes = quantizer.quantize_activation(
        x_codes * x_scale - x, x_scale / 256, torch.tensor(128.0)
    )
    first = (x_codes @ codes.T) * (x_scale * scale) + bias
    expected = first - (excess_codes @ codes.T) * (x_scale / 256 * scale)
    got = quantizer.integer_linear(x, codes, scale, bias, (x_scale, zero_point), terms=2)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (7, 2), (1, 9)])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_byte_codes_of_what_they_stand_for_are_the_same(
    shape: tuple[int, ...], size: float
) -> None:
    tensor = size * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    tensor[0] = 0
    codes, scale = quantizer.byte_codes(tensor)
    again, its = quantizer.byte_codes(codes * scale)
    assert torch.equal(again, codes)
    assert torch.equal(its, scale)
    assert (codes.flatten(1)[1:].abs().amax(1) == 127).all()
    assert ((codes * scale - tensor).abs() <= 0.501 * scale).all()


@pytest.mark.parametrize(
    ("value", "fits"), [(1.0, True), (-6.2e-5, True), (6e-5, False), (1e5, False), (0.0, False)]
)
def test_scales_fit_in_half_as_normal_numbers_only(value: float, fits: bool) -> None:
    assert quantizer.fits_half(torch.tensor([0.5, value])) == fits


@pytest.mark.parametrize(
    ("values", "half", "whole"),
    [
        ([0.5, -0.25, 0.0], True, True),
        ([0.5, 1e-9], True, True),
        ([0.0, 0.0], True, True),
        ([70_000.0, 1.0], False, True),
        ([1e-9, 2e-8], False, True),
        ([3.4e38, 1.0], False, True),
        ([float("inf"), 1.0], False, False),
        ([float("nan"), 1.0], False, False),
    ],
)
def test_tensors_are_narrowed_only_where_they_stay_what_they_are(
    values: list[float], half: bool, whole: bool
) -> None:
    tensor = torch.tensor([values])
    assert quantizer.keeps_in_half(tensor) == half
    assert quantizer.keeps_in_bytes(tensor) == whole
