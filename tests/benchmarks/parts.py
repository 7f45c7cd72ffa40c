"""What 8 bits would be worth where quantized models stay float: GELU and the products of attention.

    python tests/benchmarks/parts.py [--widths 192 384 768] [--tokens 197 577 1370] [--seconds 1]

Each part alone in onnxruntime on one thread, one image, its forms in turns: a Markdown table.
"""

import argparse
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx.parser

from vitcompress import processor
from vitcompress.console import console
from vitcompress.measure.runtime import Timing, time_in_turns
from vitcompress.targets import Session
from vitcompress.targets.onnxruntime import TARGET

HEAD = 64  # features of a head
OPSETS = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'


def gelu_table() -> str:
    """GELU in codes of a 16th from −128 to codes of a 32nd from −8, as an initializer's text."""
    x = (np.arange(256) - 128) / 16
    exact = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    return ", ".join(map(str, np.clip(np.round(exact * 32) + 8, 0, 255).astype(int)))


def gelus(tokens: int, width: int) -> dict[str, str]:
    """Forms of GELU from the floats of fc1 to the codes of fc2."""
    shape = f"{tokens},{4 * width}"
    head = f"{OPSETS} gelu (float[batch,{shape}] x) => (uint8[batch,{shape}] y)"
    scales = "float s = {0.0625}, uint8 z = {128}, float t = {0.03125}, uint8 w = {8}"
    return {
        "float": f"{head} <{scales}> {{ g = Gelu(x) y = QuantizeLinear(g, t, w) }}",
        "table": f"""{head} <{scales}, uint8[256] table = {{{gelu_table()}}}> {{
            c = QuantizeLinear(x, s, z)
            i = Cast<to = 6>(c)
            y = Gather(table, i)
        }}""",
        # x · sigmoid(1.702 x): the codes of x are read at another scale.
        "QLinearSigmoid": f"""{head} <{scales}, float u = {{0.106375}}, float v = {{0.00390625}},
            uint8 zero = {{0}}> {{
            c = QuantizeLinear(x, s, z)
            p = com.microsoft.QLinearSigmoid(c, u, z, v, zero)
            y = com.microsoft.QLinearMul(c, s, z, p, v, zero, t, w)
        }}""",
    }


def attentions(tokens: int, width: int) -> dict[str, str]:
    """Forms of attention from the floats of qkv to floats."""
    heads = width // HEAD
    head = (
        f"{OPSETS} attention (float[batch,{tokens},{3 * width}] x) "
        f"=> (float[batch,{tokens},{width}] y)"
    )
    return {
        "float": f"""{head} {{
            q, k, v = Split<axis = 2, num_outputs = 3>(x)
            y = Attention<q_num_heads = {heads}, kv_num_heads = {heads}>(q, k, v)
        }}""",
        "integer": f"""{head} <float s = {{0.03125}}, uint8 z = {{128}}, float r = {{0.0039215}},
            uint8 zero = {{0}}, float a = {{{0.03125**2 / math.sqrt(HEAD)}}},
            float b = {{{0.03125 * 0.0039215}}}, int64[5] parted = {{0, 0, 3, {heads}, {HEAD}}},
            int64[3] joined = {{-1, {tokens}, {width}}}> {{
            c = QuantizeLinear(x, s, z)
            h = Reshape(c, parted)
            o = Transpose<perm = [2, 0, 3, 1, 4]>(h)
            q, k, v = Split<axis = 0, num_outputs = 3>(o)
            kt = Transpose<perm = [0, 1, 2, 4, 3]>(k)
            i = MatMulInteger(q, kt, z, z)
            f = Cast<to = 1>(i)
            l = Mul(f, a)
            p = Softmax(l)
            d = QuantizeLinear(p, r, zero)
            j = MatMulInteger(d, v, zero, z)
            g = Cast<to = 1>(j)
            m = Mul(g, b)
            n = Transpose<perm = [0, 1, 3, 2, 4]>(m)
            y = Reshape(n, joined)
        }}""",
    }


def timed(forms: dict[str, str], channels: int, tokens: int, seconds: float) -> dict[str, Timing]:
    pixels = np.random.default_rng(0).normal(size=(1, tokens, channels)).astype(np.float32)
    with TemporaryDirectory() as folder:
        held: dict[str, Session] = {}
        for name, text in forms.items():
            path = Path(folder) / f"{name}.onnx"
            onnx.save(onnx.parser.parse_model(text), path)
            held[name] = TARGET.session(path, 1)
        return time_in_turns(held, pixels, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 384, 768])
    parser.add_argument("--tokens", type=int, nargs="+", default=[197, 577, 1370])
    parser.add_argument("--seconds", type=float, default=1, help="to time a form")
    given = parser.parse_args()
    console.print("| part | width | tokens | float | in 8 bits |", markup=False)
    console.print("|---|---|---|---|---|")
    for width in given.widths:
        for tokens in given.tokens:
            parts = {
                "GELU": (gelus(tokens, width), 4 * width),
                "attention": (attentions(tokens, width), 3 * width),
            }
            for part, (forms, channels) in parts.items():
                # The tenth percentile: what else runs on the machine disturbs fewer of these.
                times = {
                    name: 1000 * each.percentile(10)
                    for name, each in timed(forms, channels, tokens, given.seconds).items()
                }
                base = times.pop("float")
                others = ", ".join(
                    f"{name} {each:.0f} µs ({base / each:.2f}×)" for name, each in times.items()
                )
                cells = f"{base:.0f} µs | {others}"
                console.print(
                    f"| {part} | {width} | {tokens} | {cells} |", markup=False, soft_wrap=True
                )
    console.print(f"{processor.name()}: {processor.instructions()}", markup=False)


if __name__ == "__main__":
    main()
