"""The check that an exported file computes what the torch model computes.

A float export must give the same logits; where tokens merge, of two scores that are nearly equal
each may win, and then an image has another answer: one in eight may. A quantized network cannot be
held to that: each rounding turns a tiny float difference δ into noise of about √(δ·step), so that
after some layers two correct runs differ by about the quantization noise. It is held to three
things instead: every quantized layer became an integer kernel; each layer, on the very inputs it
has in onnxruntime, gives the same integers; and the whole model is no further from torch than
rounding the inputs of its layers puts torch from a float model of the same weights.
"""

import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor

from vitcompress.errors import ParityError
from vitcompress.export.functions import DOMAIN
from vitcompress.export.onnx import INPUT
from vitcompress.measure.runtime import session
from vitcompress.methods import quantizer
from vitcompress.model.architecture import VitModel
from vitcompress.model.layers import QuantizedLinear
from vitcompress.model.structure import float_twin, quantized_linears

_FUSED = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_FLOAT_TOLERANCE = 1e-4
_TIED = 1 / 8  # of the images, where tokens merge
# Sums that differ because a value lay within float rounding of the middle of two codes.
_TIES = 1e-3


def check(path: Path, model: VitModel, pixels: Tensor, threads: int) -> dict[str, Any]:
    """Compare the file at `path` with `model` on `pixels` [n, C, H, W].

    Returns the facts for the report. Raises `ParityError` naming the layer, or the figure and its
    limit.
    """
    layers = quantized_linears(model.module)
    facts: dict[str, Any] = {"images": len(pixels)}
    if layers:
        facts["fused_layers"] = fused_layers(path, layers)
        facts["worst_layer_mismatch"] = _check_layers(path, layers, pixels, threads)
    with torch.inference_mode():
        ours = model.module(pixels).float().cpu().numpy()
    start = time.perf_counter()
    held = session(path, threads)  # weights are unpacked now, once
    facts["load_seconds"] = time.perf_counter() - start
    theirs = held.run(None, {INPUT: pixels.numpy()})[0]
    difference = np.abs(theirs - ours)
    tolerance = _FLOAT_TOLERANCE * max(1.0, float(np.abs(ours).max()))
    facts["max_logit_difference"] = float(difference.max())
    facts["mean_logit_difference"] = float(difference.mean())
    if layers:
        with torch.inference_mode():
            unrounded = float_twin(model.module)(pixels).numpy()
        noise = float(np.abs(ours - unrounded).mean())
        facts["mean_quantization_noise"] = noise
        compared = model.task.compared(torch.from_numpy(theirs), torch.from_numpy(ours))
        facts |= {f"torch_{name}": value for name, value in compared.items()}
        # Two noisy copies of one signal lie √2 apart where their noises are independent.
        if not difference.mean() <= max(2**0.5 * noise, tolerance):
            raise ParityError(
                f"{path.name}: mean |Δlogit| between onnxruntime and torch is "
                f"{difference.mean():.4g}, beyond the quantization noise of {noise:.4g}"
            )
    else:
        far, allowed = int((~(difference.max(1) <= tolerance)).sum()), 0.0
        if model.architecture.merging is not None:
            facts["tied_images"], allowed = far, _TIED * len(pixels)
        if far > allowed:
            raise ParityError(
                f"{path.name}: onnxruntime and torch differ by up to {difference.max():.3g} in the "
                f"logits; {_FLOAT_TOLERANCE:g} of the largest logit is allowed"
            )
    facts["passed"] = True
    return facts


def fused_layers(path: Path, layers: dict[str, QuantizedLinear]) -> int:
    """How many layers onnxruntime runs in integer kernels; all, or `ParityError` names one."""
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(path, 1, optimized)
        graph = onnx.load(optimized, load_external_data=False).graph
    read = Counter(name for node in graph.node if node.op_type in _FUSED for name in node.input)
    kernels = {name: read[f"{name}.scale"] for name in layers}
    for name, layer in layers.items():
        if kernels[name] != layer.terms:
            raise ParityError(
                f"{path.name}: {name}: onnxruntime did not fuse it to an integer kernel "
                f"({kernels[name]} of {layer.terms}); leave it out with `skip`, and "
                "report this with the versions of onnxruntime and onnx"
            )
    return len(layers)


def _check_layers(
    path: Path, layers: dict[str, QuantizedLinear], pixels: Tensor, threads: int
) -> float:
    """The largest share of sums that differ in any layer, each fed with onnxruntime's input."""
    model = onnx.load(path)
    ends = _layer_ends(model.graph, layers)
    wanted = list(dict.fromkeys(name for pair in ends.values() for name in pair))
    present = {output.name for output in model.graph.output}
    float32 = onnx.TensorProto.FLOAT
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, float32, None)
        for name in wanted
        if name not in present
    )
    worst = 0.0
    with TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.onnx"
        onnx.save(model, probe, save_as_external_data=model.ByteSize() > 1_900_000_000)
        run = session(probe, threads)
        for image in pixels.split(1):
            values = run.run(wanted, {INPUT: image.numpy()})
            found = dict(zip(wanted, map(torch.from_numpy, values), strict=True))
            for name, layer in layers.items():
                share = mismatch(layer, *(found[end] for end in ends[name]))
                if not share <= _TIES:
                    raise ParityError(
                        f"{path.name}: {name}: {share:.2%} of the integer sums differ between "
                        f"onnxruntime and torch on equal inputs; {_TIES:.2%} may be rounding ties"
                    )
                worst = max(worst, share)
    return worst


def _layer_ends(
    graph: onnx.GraphProto, layers: dict[str, QuantizedLinear]
) -> dict[str, tuple[str, str]]:
    """The names of the float input and of the output of each quantized layer."""
    calls = {node.name: node for node in graph.node if node.domain == DOMAIN}
    return {name: (calls[name].input[0], calls[name].output[0]) for name in layers}


def mismatch(layer: QuantizedLinear, x: Tensor, output: Tensor) -> float:
    """The share of `output` that is not the layer's output on `x`, to a fraction of one step.

    One step is the change of an output when its integer sum changes by one.
    """
    if layer.activation_scale is None:
        x_scale, _ = quantizer.activation_parameters(x.amin(), x.amax())
    else:
        x_scale = layer.activation_scale
    expected = cast(Tensor, layer(x))
    step = (x_scale * layer.scale.abs()).expand_as(expected).clone()
    if layer.terms == 2:
        step[..., : layer.fine_tokens, :] /= 256
    # float32 holds seven digits of the output, whatever the step.
    tolerance = 0.5 * step + 2e-6 * expected.abs().amax()
    return float(((output - expected).abs() > tolerance).double().mean())
