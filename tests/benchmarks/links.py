"""What attention of few links takes in onnxruntime, a dense runtime, against that of all.

    python tests/benchmarks/links.py --heads 3 --tokens 197 --dims 64

Prints a Markdown table: the processor time of the products and the softmax of one block on one
thread, the median of runs in turns, and against dense attention. What is not kept is masked: `TopK`
tells the smallest logit that is, and all products are computed, since the runtime has no sparse
ones.
"""

import argparse
import statistics
import time
from collections.abc import Mapping

import numpy as np
import onnx.parser
import onnxruntime as ort
from onnx import ModelProto

from vitcompress.methods.links import kept_links

SHARES = (0.5, 0.25, 0.125)
_HEAD = """<ir_version: 10, opset_import: ["" : 23]>
attention (float[1, {heads}, {tokens}, {dims}] q, float[1, {heads}, {tokens}, {dims}] k,
           float[1, {heads}, {tokens}, {dims}] v) => (float[1, {heads}, {tokens}, {dims}] y)
"""
_LOGITS = "turned = Transpose <perm = [0, 1, 3, 2]> (k) logits = MatMul (q, turned)"
_END = "weights = Softmax <axis = -1> ({}) y = MatMul (weights, v)"
DENSE = {
    "operator `Attention`": "y = Attention <scale = 1.0> (q, k, v)",
    "products and softmax": f"{_LOGITS} {_END.format('logits')}",
}
_KEPT = (
    f"{_LOGITS} size = Constant <value_ints = [KEPT]> ()"
    " largest, places = TopK <axis = -1> (logits, size)"
    " axis = Constant <value_ints = [-1]> ()"
    " least = ReduceMin (largest, axis) near = GreaterOrEqual (logits, least)"
    " nothing = Constant <value_float = -1e30> ()"
    f" left = Where (near, logits, nothing) {_END.format('left')}"
)


class Held:
    """A graph in a session of one thread."""

    def __init__(self, body: str, shape: dict[str, int]) -> None:
        text = f"{_HEAD.format(**shape)}{{ {body} }}"
        model: ModelProto = onnx.parser.parse_model(text)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        random, size = np.random.default_rng(0), (1, shape["heads"], shape["tokens"], shape["dims"])
        self.given = {name: random.standard_normal(size, np.float32) for name in "qkv"}

    def run(self) -> float:
        """The milliseconds of processor time that a run takes: waiting for other programs is not
        counted."""
        start = time.process_time()
        self.session.run(None, self.given)
        return 1000 * (time.process_time() - start)


def turn(held: Mapping[str, Held]) -> dict[str, float]:
    return {name: each.run() for name, each in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in {"heads": 3, "tokens": 197, "dims": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--runs", type=int, default=40)
    given = vars(parser.parse_args())
    runs = given.pop("runs")
    bodies = dict(DENSE)
    for share in SHARES:
        kept = kept_links(share, given["tokens"])
        bodies[f"{share:.1%} of the links"] = _KEPT.replace("KEPT", str(kept))
    held = {name: Held(body, given) for name, body in bodies.items()}
    for _ in range(5):  # to warm up
        turn(held)
    turns = [turn(held) for _ in range(runs)]
    taken = {name: statistics.median(each[name] for each in turns) for name in held}
    dense = min(taken[name] for name in DENSE)
    print("| | ms | × dense |\n| --- | --- | --- |")  # noqa: T201
    for name, milliseconds in taken.items():
        print(f"| {name} | {milliseconds:.2f} | {milliseconds / dense:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
