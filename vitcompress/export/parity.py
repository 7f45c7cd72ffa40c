"""The check that an exported file computes what the torch model computes.

A float export must give the same logits; where tokens merge, of two scores that are nearly equal
each may win, and then an image has another answer: one in eight may. A quantized network cannot be
held to that: each rounding turns a tiny float difference δ into noise of about √(δ·step), so that
after some layers two correct runs differ by about the quantization noise. It is held to three
things instead: every quantized layer became an integer kernel; each layer, on the very inputs it
has in the runtime, gives the same integers; and the whole model is no further from torch than
rounding the inputs of its layers puts torch from a float model of the same weights.

A file that computes in float16 rounds at every operator. It is no further from torch in float32
than three times what rounding the outputs of all modules to float16 changes in torch.
"""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from vitcompress import targets
from vitcompress.claims import scratch
from vitcompress.errors import ParityError
from vitcompress.export.onnx import EXTERNAL_BYTES
from vitcompress.methods import quantizer
from vitcompress.model.architecture import VitModel
from vitcompress.model.modules.quantized import QuantizedLinear
from vitcompress.model.structure import float_twin
from vitcompress.terms import Floats

_FLOAT_TOLERANCE = 1e-4
_TIED = 1 / 8  # of the images, where tokens merge
# How near the middle of two codes, in steps between them, a float of 8 bits may have either.
_MIDDLE = 1e-4
_TIES = 1e-3  # the share of sums that may differ for all that
# Modules round once where a graph rounds several times: files were 0.4 to 1.6 times as far.
_ROUNDINGS = 3.0


def check_parity(
    path: Path,
    model: VitModel,
    pixels: Tensor,
    threads: int,
    target: str = targets.DEFAULT,
    floats: Floats = "float32",
) -> dict[str, Any]:
    """Compare the file at `path`, of which `floats` are so, with `model` on `pixels` [n, C, H, W].

    Returns the facts for the report, of a quantized model also those of its task against torch, as
    `torch_NAME`. Raises `ParityError` naming the layer, or the figure and its limit, and for an
    output that is not finite on either side.
    """
    runtime = targets.load_target(target)
    layers = _integer_layers(model)
    facts: dict[str, Any] = {"images": len(pixels)}
    if layers:
        facts["fused_layers"] = fused_layers(path, layers, runtime)
        facts["worst_layer_mismatch"] = _check_layers(path, layers, pixels, threads, runtime)
    start = time.perf_counter()
    held = runtime.session(path, threads, exact=True)  # weights are unpacked now, once
    facts["load_seconds"] = time.perf_counter() - start
    facts |= compare(path, model, pixels, held.run(pixels.numpy()), target, floats)
    facts["passed"] = True
    return facts


def compare(
    path: Path,
    model: VitModel,
    pixels: Tensor,
    theirs: np.ndarray,
    runtime: str,
    floats: Floats = "float32",
) -> dict[str, Any]:
    """Compare the outputs of a `runtime` for the file at `path` with those of `model` on `pixels`.

    Returns the facts of it; raises as `check_parity` does.
    """
    layers, facts = _integer_layers(model), dict[str, Any]()
    with torch.inference_mode():
        ours = model.module(pixels).float().cpu().numpy()
    _demand_finite(path, {"torch": ours, runtime: theirs})
    difference = np.abs(theirs - ours)
    tolerance = _FLOAT_TOLERANCE * max(1.0, float(np.abs(ours).max()))
    facts["max_logit_difference"] = float(difference.max())
    facts["mean_logit_difference"] = float(difference.mean())
    limits = dict[str, float]()
    if layers:
        facts["mean_quantization_noise"] = noise = _noise(path, model, pixels, ours)
        # Two noisy copies of one signal lie √2 apart where their noises are independent.
        limits["quantization noise"] = 2**0.5 * noise
    if floats == "float16":
        facts["mean_float16_noise"] = noise = _float16_noise(path, model, pixels, ours)
        limits["rounding to float16"] = _ROUNDINGS * noise
    if limits:
        compared = model.task.compared(torch.from_numpy(theirs), torch.from_numpy(ours))
        facts |= {f"torch_{name}": value for name, value in compared.items()}
        widest = max(limits, key=lambda name: limits[name])
        if not difference.mean() <= max(limits[widest], tolerance):
            raise ParityError(
                f"{path.name}: mean |Δlogit| between {runtime} and torch is "
                f"{difference.mean():.4g}, beyond the {widest}, which explains {limits[widest]:.4g}"
            )
    else:
        far, allowed = int((~(difference.reshape(len(pixels), -1).max(1) <= tolerance)).sum()), 0.0
        if model.architecture.merging is not None:
            facts["tied_images"], allowed = far, _TIED * len(pixels)
        if far > allowed:
            raise ParityError(
                f"{path.name}: {runtime} and torch differ by up to {difference.max():.3g} in the "
                f"logits; {_FLOAT_TOLERANCE:g} of the largest logit is allowed"
            )
    return facts


def _integer_layers(model: VitModel) -> dict[str, QuantizedLinear]:
    """The layers that are multiplied in integers, by name."""
    layers = model.anatomy.quantized()
    return {name: layer for name, layer in layers.items() if layer.activations != "float"}


def _noise(path: Path, model: VitModel, pixels: Tensor, ours: np.ndarray) -> float:
    """How far rounding the inputs of layers puts `ours` from a float model of the same weights."""
    with torch.inference_mode():
        unrounded = float_twin(model.module)(pixels).numpy()
    _demand_finite(path, {"the float model of the same weights": unrounded})
    return float(np.abs(ours - unrounded).mean())


def _float16_noise(path: Path, model: VitModel, pixels: Tensor, ours: np.ndarray) -> float:
    """How far rounding the outputs of all modules to float16 moves those of the model, `ours`."""

    def hook(module: nn.Module, inputs: object, output: object) -> object:
        if isinstance(output, Tensor) and output.is_floating_point():
            return output.half().float()
        return output

    hooks = [each.register_forward_hook(hook) for each in model.module.modules()]
    try:
        with torch.inference_mode():
            rounded = model.module(pixels.half().float()).numpy()
    finally:
        for each in hooks:
            each.remove()
    _demand_finite(path, {"torch, rounding to float16": rounded})
    return float(np.abs(ours - rounded).mean())


def _demand_finite(path: Path, outputs: Mapping[str, np.ndarray]) -> None:
    """Raise `ParityError` for an output that cannot be compared with anything."""
    for whose, values in outputs.items():
        bad = int((~np.isfinite(values)).reshape(len(values), -1).any(1).sum())
        if bad:
            raise ParityError(
                f"{path.name}: the logits of {whose} are infinite or no number for {bad} of "
                f"{len(values)} images"
            )


def fused_layers(path: Path, layers: dict[str, QuantizedLinear], runtime: targets.Target) -> int:
    """How many layers run in integer kernels; all, or `ParityError` names one.

    Each layer has a kernel for each term and each of its calls, which rescales with its own scale.
    """
    graph = onnx.load(path, load_external_data=False).graph
    calls = Counter(name for name, _, _ in _calls(graph, layers))
    kernels = runtime.kernels(path, [f"{name}.scale" for name in layers])
    for name, layer in layers.items():
        found, wanted = kernels[f"{name}.scale"], layer.terms * calls[name]
        if not found == wanted > 0:
            raise ParityError(
                f"{path.name}: {name}: {runtime.name} did not fuse it to an integer kernel "
                f"({found} of {wanted}); leave it out with `skip`, and "
                f"report this with the versions of {runtime.name} and onnx"
            )
    return len(layers)


def _check_layers(
    path: Path,
    layers: dict[str, QuantizedLinear],
    pixels: Tensor,
    threads: int,
    runtime: targets.Target,
) -> float:
    """The largest share of sums that differ in any layer, each fed with the runtime's input."""
    model = onnx.load(path)
    ends = _calls(model.graph, layers)
    wanted = list(dict.fromkeys(end for _, *pair in ends for end in pair))
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    float32 = onnx.TensorProto.FLOAT
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, float32, None)
        for name in wanted
        if name not in present
    )
    inner = [name for name in wanted if name not in {i.name for i in model.graph.input}]
    worst = 0.0
    with scratch() as folder:
        probe = folder / "probe.onnx"
        onnx.save(model, probe, save_as_external_data=model.ByteSize() > EXTERNAL_BYTES)
        run = runtime.session(probe, threads, exact=True)
        for image in pixels.split(1):
            values = run.values(image.numpy(), inner)
            found = dict(zip(inner, map(torch.from_numpy, values), strict=True))
            found |= {value.name: image for value in model.graph.input}
            for name, entering, leaving in ends:
                share = mismatch(layers[name], found[entering], found[leaving])
                if not share <= _TIES:
                    raise ParityError(
                        f"{path.name}: {name}: {share:.2%} of the integer sums differ between "
                        f"{runtime.name} and torch on equal inputs; {_TIES:.2%} may be rounding "
                        "ties"
                    )
                worst = max(worst, share)
    return worst


def _calls(
    graph: onnx.GraphProto, layers: dict[str, QuantizedLinear]
) -> list[tuple[str, str, str]]:
    """Of each call of a quantized layer: the layer, what enters it, and what leaves it.

    A call is a node of the layer's name, or nodes called LAYER/NODE; after the first, LAYER@1, ….
    """
    calls: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        calls.setdefault(node.name.partition("/")[0], []).append(node)
    held = {tensor.name for tensor in graph.initializer}
    read_last = {name: node.name for node in graph.node for name in node.input}
    ends = []
    for call, nodes in calls.items():
        name = call if call in layers else call.rpartition("@")[0]
        if name in layers:
            made = [value for node in nodes for value in node.output]
            read = [value for node in nodes for value in node.input if value]
            entering = next(value for value in read if value not in {*held, *made})
            inside = {node.name for node in nodes}
            leaving = next(v for v in reversed(made) if read_last.get(v) not in inside)
            ends.append((name, entering, leaving))
    return ends


def mismatch(layer: QuantizedLinear, x: Tensor, output: Tensor) -> float:
    """The share of `output` that is not the layer's output on `x`, to a fraction of one step.

    One step is the change of an output when its integer sum changes by one. An input within float
    rounding of the middle of two codes may have either: an output may then differ by the weights of
    all such inputs.
    """
    x_scale = layer.activation_scale
    zero_point = layer.activation_zero_point
    if x_scale is None or zero_point is None:
        x_scale, zero_point = quantizer.activation_parameters(x.amin(), x.amax())
    expected = cast(Tensor, layer(x))
    step = (x_scale * layer.scale.abs()).expand_as(expected)
    weight = layer.whole_weight()
    tied = _tied(x / x_scale, _MIDDLE)
    allowed = step * (0.5 + tied.float() @ weight.abs().T)
    if layer.terms == 2:  # which makes up for the first one's choice, to a code of its own
        few = slice(None) if layer.residual_tokens is None else slice(layer.residual_tokens)
        rest = quantizer.quantize_activation(x, x_scale, zero_point.float()) - x / x_scale
        either = tied | _tied(256 * rest, 256 * _MIDDLE)
        finer = step / 256 * (0.5 + either.float() @ weight.abs().T)
        allowed[..., few, :] = finer[..., few, :]
    # float32 holds seven digits of the output, whatever the step.
    tolerance = allowed + 2e-6 * expected.abs().amax()
    same = (output - expected).abs() <= tolerance  # what is no number is not
    return float((~same).double().mean())


def _tied(position: Tensor, near: float) -> Tensor:
    """Where a position among whole codes is `near` the middle of two."""
    return (position - position.floor() - 0.5).abs() < near
