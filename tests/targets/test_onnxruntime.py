"""What the target says of onnxruntime holds in onnxruntime."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcompress import processor, targets
from vitcompress.errors import InputError
from vitcompress.model.architecture import QuantizedLayer
from vitcompress.model.modules.attention import attention
from vitcompress.targets.onnxruntime import OnnxRuntime
from vitcompress.targets.portable import Portable

HEADS, WIDTH = 2, 8


class Attending(nn.Module):
    """Attention with a bias that is spread over images, heads or queries."""

    def __init__(self, bias: Tensor, queries: int) -> None:
        super().__init__()
        self.bias, self.queries = nn.Buffer(bias), queries

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if bias.shape[0] > 1:  # of its own for each image
            bias = bias * x.mean((1, 2)).view(-1, 1, 1, 1)
        return attention(x[:, : self.queries], x, x, HEADS, 0.5, bias)


def expected(module: Attending, x: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (x[:, : module.queries], x, x))
    bias = module.bias
    if bias.shape[0] > 1:
        bias = bias * x.mean((1, 2)).view(-1, 1, 1, 1)
    mask = bias.expand(len(x), HEADS, module.queries, x.shape[1])
    return F.scaled_dot_product_attention(q, k, v, mask, scale=0.5).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("shape", "queries"),
    [
        ((1, 1, 5, 5), 5),
        ((1, HEADS, 5, 5), 5),
        ((3, 1, 5, 5), 5),
        ((3, HEADS, 5, 5), 5),
        ((1, 1, 1, 5), 5),
        ((1, HEADS, 1, 5), 5),
        ((3, 1, 1, 5), 5),
        ((3, HEADS, 1, 5), 1),
    ],
)
def test_a_bias_of_any_shape_that_spreads_is_added(
    shape: tuple[int, ...], queries: int, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    module = Attending(torch.randn(shape, generator=generator), queries).eval()
    x = torch.randn(3, 5, HEADS * WIDTH, generator=generator)
    target, path = targets.load_target("onnxruntime"), tmp_path / "attention.onnx"
    program = torch.onnx.export(
        module,
        (x,),
        dynamo=True,
        opset_version=target.opset,
        custom_translation_table=dict(target.operators()),
        verbose=False,
    )
    assert program is not None
    ir.save(program.model, path)
    if shape[0] > 1:  # a constant is repeated when the file is made
        kinds = [node.op_type for node in program.model.graph]
        assert kinds.count("Expand") == (queries > 1 and shape[-2] != queries)
    found = target.session(path, 1).run(x.numpy())
    assert np.allclose(found, expected(module, x), atol=1e-5)


def test_the_targets_are_known_without_their_runtimes() -> None:
    script = (
        "import sys; from vitcompress import registry, targets; "
        "assert 'onnxruntime' in registry.names(targets.__name__); "
        "assert not {'torch', 'onnxruntime', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_opset_and_kernels_are_named_in_targets_alone() -> None:
    home = Path(targets.__file__).parents[1]
    for file in set(home.rglob("*.py")) - {home / "export" / "predict.py"}:  # without torch
        if "targets" not in file.relative_to(home).parts:
            text = file.read_text(encoding="utf-8")
            for word in ("import onnxruntime", "from onnxruntime", "opset23", "MatMulIntegerTo"):
                assert word not in text, (file, word)


@pytest.mark.parametrize(
    ("instructions", "version", "bits", "refused"),
    [
        ("avx2", "1.29.0", 8, True),
        ("avx2", "1.29.0", 7, False),
        ("avx2", "1.30.0", 8, False),
        ("avx2 avx512_vnni", "1.24.1", 8, False),
        ("unknown", "1.24.1", 8, False),
    ],
)
def test_weights_that_older_versions_saturate_are_refused(
    instructions: str, version: str, bits: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "instructions", lambda: instructions)
    layers = {"head": QuantizedLayer(bits=bits, activations="static")}
    for target in (OnnxRuntime(version=version), Portable(version=version)):
        if not refused:
            target.check_layers(layers)
            continue
        with pytest.raises(InputError, match=r"\(head\); pip install .*1\.30.* or .* bits: 7"):
            target.check_layers(layers)


def test_threads_of_a_session_that_waits_do_not_slow_others(tmp_path: Path) -> None:
    file, x = tmp_path / "model.onnx", torch.rand(64, 256, 256)
    torch.onnx.export(nn.Linear(256, 256).eval(), (x,), file, dynamo=True, verbose=False)
    session = targets.load_target("onnxruntime").session(file, threads=2)
    for _ in range(3):
        session.run(x.numpy())
    start = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - start < 0.01  # threads that spin burn several times that
