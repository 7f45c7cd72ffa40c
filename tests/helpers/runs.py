"""A small output folder, as a run writes it."""

from pathlib import Path

from helpers.reports import full_report
from vitcompress.chain import Options
from vitcompress.export.folder import save_folder
from vitcompress.export.onnx import export_onnx, facts_of
from vitcompress.model.architecture import VitModel
from vitcompress.output import ONNX, write_manifest, write_predict, write_reports
from vitcompress.recipe import recipe_without_stages


def write_run(model: VitModel, home: Path) -> Path:
    """Everything but its log in the new folder `home`."""
    home.mkdir()
    save_folder(model, home)
    facts = facts_of(model, {})
    export_onnx(model, home / ONNX, facts)
    write_predict(home, model.architecture.timm, facts)
    write_reports(home, full_report())
    write_manifest(home, recipe_without_stages({}), Options(), {})
    return home
