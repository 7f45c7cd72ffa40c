"""Exports that tests need not repeat."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import onnx

from vitcompress import targets
from vitcompress.export.onnx import export_onnx
from vitcompress.export.passes.describe import METADATA_PREFIX
from vitcompress.model.architecture import VitModel
from vitcompress.terms import Floats


def exported_once(
    memo: Path,
    model: VitModel,
    path: Path,
    facts: Mapping[str, str],
    target: str = targets.DEFAULT,
    floats: Floats = "float32",
) -> dict[str, int]:
    """`export_onnx`, but equal models are exported once, which takes seconds, and are kept in the
    folder `memo`; then their files are told the facts."""
    key = repr((model.fingerprint(), model.preprocess, target, floats))
    kept = memo / f"{hashlib.sha256(key.encode()).hexdigest()}.onnx"
    told = kept.with_suffix(".json")
    if not told.exists():
        changed = export_onnx(model, kept, {}, target, floats)
        whole = kept.with_suffix(".partial")
        whole.write_text(json.dumps(changed))
        whole.replace(told)
    written = onnx.load(kept)
    properties = {each.key: each.value for each in written.metadata_props}
    properties |= {METADATA_PREFIX + name: fact for name, fact in facts.items()}
    onnx.helper.set_model_props(written, properties)
    onnx.save(written, path)
    found: dict[str, int] = json.loads(told.read_text())
    return found
