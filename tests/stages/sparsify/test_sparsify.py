"""The sparsify stage on a tiny model: patterns, budgets, and what quantization leaves of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from helpers.models import images_of
from vitcompress.errors import InputError
from vitcompress.export.folder import load_folder, save_folder, stored_bytes
from vitcompress.methods import compact, quantizer, sparsity
from vitcompress.model.architecture import VitModel, stored_tensors
from vitcompress.stages.context import Context
from vitcompress.stages.quantize import stage as quantizing
from vitcompress.stages.quantize.config import QuantizeConfig
from vitcompress.stages.quantize.stage import quantize
from vitcompress.stages.sparsify.config import SparsifyConfig
from vitcompress.stages.sparsify.layer import distortion
from vitcompress.stages.sparsify.stage import plan, prepare_sparsify, sensitivity, sparsify
from vitcompress.stages.stage import StageResult

MLPS = [f"blocks.{i}.mlp.{kind}" for i in range(2) for kind in ("fc1", "fc2")]
BLOCKS = [n for i in range(2) for n in (f"blocks.{i}.attn.qkv", f"blocks.{i}.attn.proj")] + MLPS


def run(vit: VitModel, context: Context, **options: Any) -> StageResult:
    return sparsify(vit, SparsifyConfig(**options), context)


def weights(model: VitModel) -> dict[str, Tensor]:
    return {name: linear.weight for name, linear in model.anatomy.linears().items()}


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
def test_exactly_n_of_m_weights_stay(
    pattern: str, criterion: str, vit: VitModel, context: Context
) -> None:
    result = run(vit, context, pattern=pattern, criterion=criterion, layers=("blocks.1.mlp.*",))
    model = result.model
    kept, group = map(int, pattern.split(":"))
    for name, weight in weights(model).items():
        if name in MLPS[2:]:
            assert ((weight != 0).unflatten(1, (-1, group)).sum(-1) == kept).all()
        else:
            assert torch.equal(weight, weights(vit)[name])
    assert [row["layer"] for row in result.table("layers").rows] == MLPS[2:]
    assert result.facts["density"] == kept / group


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_stay_zeros_when_weights_are_quantized(
    bits: int, vit: VitModel, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    sparse = run(vit, context).model
    config = QuantizeConfig(bits=bits, layers=("blocks.*",))
    model = quantize(sparse, config, context).model
    dense = quantizing.plan(vit, config).model
    stored, whole = stored_tensors(model), stored_tensors(dense)
    for name in MLPS:
        layer = model.module.get_submodule(name)
        codes = quantizer.unpack_weight(layer.codes, bits, layer.in_features)
        assert (codes[sparse.module.get_submodule(name).weight == 0] == 0).all()
        left = compact.present(stored[f"{name}.mask"], *codes.T.shape, (1, 1)).T
        assert (left.unflatten(1, (-1, 4)).sum(-1) == 2).all()
        assert left[codes != 0].all()
        held = stored[f"{name}.codes"].nbytes + stored[f"{name}.mask"].nbytes
        assert held <= {8: 0.625, 4: 0.75}[bits] * whole[f"{name}.codes"].nbytes
    save_folder(model, tmp_path)
    assert torch.equal(load_folder(tmp_path).module(pixels), model.module(pixels))


@pytest.mark.parametrize("allocation", ["uniform", "erk", "distortion"])
@pytest.mark.parametrize("cell", [(16, 16), (24, 20)])
def test_blocks_stay_or_go_whole(
    cell: tuple[int, int], allocation: str, vit: VitModel, context: Context
) -> None:
    result = run(vit, context, pattern=f"{cell[0]}x{cell[1]}", density=0.5, allocation=allocation)
    model = result.model
    total = left = 0
    for name in MLPS:
        weight = weights(model)[name]
        counts = sparsity.cells((weight != 0).double(), cell)
        full = sparsity.cells(torch.ones_like(weight), cell)
        assert ((counts == 0) | (counts == full)).all()
        total, left = total + counts.numel(), left + int((counts > 0).sum())
    assert left == pytest.approx(0.5 * total, abs=2)
    assert result.facts["density"] == pytest.approx(0.5, abs=0.02)


def test_density_one_changes_nothing(vit: VitModel, context: Context, pixels: Tensor) -> None:
    for pattern in ("unstructured", "8x8"):
        model = run(vit, context, pattern=pattern, density=1.0, allocation="uniform").model
        assert torch.equal(model.module(pixels), vit.module(pixels))
        assert model.architecture == vit.architecture


@pytest.mark.parametrize("criterion", ["obs", "taylor", "wanda", "magnitude", "dimap", "random"])
@pytest.mark.parametrize("pattern", ["2:4", "8x8", "unstructured"])
def test_a_refit_never_raises_the_error_of_a_layer(
    pattern: str, criterion: str, vit: VitModel, context: Context
) -> None:
    density = None if pattern == "2:4" else 0.5
    options = {"pattern": pattern, "criterion": criterion, "density": density, "permute": False}
    options |= {"layers": ("blocks.1.mlp.*",)}
    known = prepare_sparsify(vit, SparsifyConfig(**options), context)
    errors = {}
    for reconstruct in (True, False):
        model = run(vit, context, reconstruct=reconstruct, allocation="uniform", **options).model
        errors[reconstruct] = [
            distortion(known.floats[n], model.module.get_submodule(n), known.moments[n])[1]
            for n in MLPS[2:]
        ]
    assert all(a < b for a, b in zip(errors[True], errors[False], strict=True))


def test_refitted_logits_are_nearer(vit: VitModel, context: Context) -> None:
    images = images_of(context)
    logits = vit.module(images)
    found = [
        (run(vit, context, **options).model.module(images) - logits).norm()
        for options in ({}, {"reconstruct": False}, {"reconstruct": False, "criterion": "random"})
    ]
    assert found[0] < found[1] < found[2]


def test_the_order_of_hidden_units_is_of_no_account(
    vit: VitModel, context: Context, pixels: Tensor
) -> None:
    known = prepare_sparsify(vit, SparsifyConfig(), context)
    moved = known.module.get_submodule("blocks.0.mlp.fc2").weight
    assert not torch.equal(moved, vit.module.get_submodule("blocks.0.mlp.fc2").weight)
    torch.testing.assert_close(known.module(pixels), vit.module(pixels), atol=1e-5, rtol=1e-4)


def test_a_mixed_choice_holds_its_budget(vit: VitModel, context: Context) -> None:
    result = run(vit, context, pattern="mixed", layers=("blocks.*",), density=0.7)
    model = result.model
    assert {row["pattern"] for row in result.table("layers").rows} <= {"1:4", "2:4", "3:4", "dense"}
    found = weights(model)
    left = sum(int((found[n] != 0).sum()) for n in BLOCKS)
    assert 0.6 < left / sum(found[n].numel() for n in BLOCKS) <= 0.7
    for row in result.table("layers").rows:
        name, most = row["layer"], {"dense": 4}.get(row["pattern"]) or int(row["pattern"][0])
        assert ((found[name] != 0).unflatten(1, (-1, 4)).sum(-1) <= most).all()
        assert (name in model.architecture.sparse) == (most < 4)
    assert 0 < result.facts["knee_density"] < 1
    assert all(row["kl_measured"] > 0 for row in result.table("allocations").rows)


def test_beyond_the_knee_a_run_warns(
    vit: VitModel, context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for density in (0.9, 0.1):
        found[density] = run(vit, context, pattern="unstructured", density=density)
        assert ("beyond the knee" in capsys.readouterr().err) == (density < 0.5)
    assert found[0.1].facts["beyond_knee"]
    (warning,) = found[0.1].warnings
    assert f"at {found[0.1].facts['knee_density']:.2f}" in warning
    assert not found[0.9].facts["beyond_knee"]
    assert not found[0.9].warnings


def test_no_layer_falls_below_the_floor(vit: VitModel, context: Context) -> None:
    result = run(vit, context, pattern="unstructured", density=0.5, floor=0.4)
    assert all(row["density"] > 0.39 for row in result.table("layers").rows)
    assert result.facts["density"] == pytest.approx(0.5, abs=0.02)


def test_layers_may_have_patterns_of_their_own(vit: VitModel, context: Context) -> None:
    result = run(vit, context, patterns={"*.fc2": "3:4"}, skip=("blocks.1.*",))
    model = result.model
    assert [row["pattern"] for row in result.table("layers").rows] == ["2:4", "3:4"]
    assert list(model.architecture.sparse) == MLPS[:2]


def test_zeros_can_be_written_out(vit: VitModel, context: Context) -> None:
    model = run(vit, context, storage="dense").model
    assert model.architecture.sparse == {}
    assert (stored_tensors(model)[f"{MLPS[0]}.weight"] == 0).double().mean() == 0.5


@pytest.mark.parametrize(
    "options",
    [{}, {"pattern": "mixed", "density": 0.6}, {"pattern": "16x16", "density": 0.5}],
)
def test_a_model_read_again_is_the_same(
    options: dict[str, Any], vit: VitModel, context: Context, pixels: Tensor, tmp_path: Path
) -> None:
    model = run(vit, context, **options).model
    save_folder(model, tmp_path)
    assert torch.equal(load_folder(tmp_path).module(pixels), model.module(pixels))


def test_two_runs_give_equal_tensors_and_leave_the_model_alone(
    make_vit: Callable[..., VitModel], make_context: Callable[..., Context]
) -> None:
    vit = make_vit()
    before = vit.fingerprint()
    one, other = (run(vit, make_context(resume=False)).model for _ in range(2))
    assert one.fingerprint() == other.fingerprint()
    assert vit.fingerprint() == before


@pytest.mark.parametrize(
    "options", [{}, {"pattern": "16x16", "density": 0.5, "allocation": "uniform"}]
)
def test_a_plan_foretells_the_bytes(
    options: dict[str, Any], vit: VitModel, context: Context
) -> None:
    result = plan(vit, SparsifyConfig(**options))
    planned = result.model
    model = run(vit, context, **options).model
    assert stored_bytes(planned) == stored_bytes(model)
    assert result.facts["density"] == pytest.approx(0.5)
    config = QuantizeConfig(bits=8, rounding="nearest", reparametrise=False, residual=0)
    less = stored_bytes(quantizing.plan(planned, config).model)
    assert less == pytest.approx(stored_bytes(quantize(model, config, context).model), rel=0.05)


def test_sensitivities_name_each_layer(vit: VitModel, context: Context) -> None:
    for options in ({}, {"pattern": "mixed", "density": 0.7}):
        rows = sensitivity(vit, SparsifyConfig(**options), context).rows
        assert [row["layer"] for row in rows] == MLPS
        assert all(row["measured_kl"] >= 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"layers": ("*.fc9",)}, r"stages\.sparsify\.layers: .*fc9.*nearest"),
        ({"skip": ("*",)}, r"stages\.sparsify\.skip: leaves no layer"),
        ({"pattern": "2:5"}, r"stages\.sparsify\.pattern: 2:5 .*blocks\.0\.mlp\.fc1.*64 inputs"),
        ({"density": 0.5}, r"stages\.sparsify\.density: 2:4 fixes"),
        ({"pattern": "8x8"}, r"stages\.sparsify\.density: 8x8 needs"),
        ({"pattern": "mixed", "density": 0.7, "allocation": "uniform"}, r"allocation: mixed"),
        ({"pattern": "mixed", "density": 0.2}, r"density: the sparsest patterns keep 0\.250"),
    ],
)
def test_bad_requests_are_told(
    options: dict[str, Any], error: str, vit: VitModel, context: Context
) -> None:
    with pytest.raises(InputError, match=error):
        run(vit, context, **options)


def test_a_quantized_model_is_refused(vit: VitModel, context: Context) -> None:
    model = quantize(vit, QuantizeConfig(layers=("head",)), context).model
    with pytest.raises(InputError, match="put the stage before quantize"):
        run(model, context)


@pytest.mark.parametrize("wrong", [{"pattern": "4:2"}, {"density": 0}, {"patterns": {"*": "no"}}])
def test_a_wrong_config_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SparsifyConfig(**wrong)
