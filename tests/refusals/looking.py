"""Commands that only look at something: what is not there, or is something else."""

import numpy as np

from refusals.making import Row, after, named

GLYPHS = "example:glyphs"
LOOKING: dict[str, Row] = {
    "a comparison with no run": Row(lambda home: ["compare", home], ("no output folder of a run",)),
    "a report of something else": Row(
        lambda home: [(home / "report.json").write_text("{}"), "compare", home][1:],
        ("report.json: not a report of schema 1",),
    ),
    "a first recipe in the place of another": Row(
        after(
            lambda home: (home / "recipe.yaml").write_text("stages: []"),
            lambda home: ["init", GLYPHS, "-o", home / "recipe.yaml"],
        ),
        ("recipe.yaml: is there already; name another file",),
    ),
    "a first recipe for nothing": Row(
        lambda home: ["init", home / "gone.pth"], ("gone.pth: no such file",)
    ),
    "a race of what is no ONNX file": Row(
        named("x.onnx", b"no", "bench"),
        ("x.onnx: damaged, or not an ONNX file", "give one that `export`"),
    ),
    "an evaluation of no ONNX file": Row(
        named("x.onnx", b"", "eval", "--evaluation", f"{GLYPHS}/evaluation"),
        ("x.onnx: damaged, or not an ONNX file",),
    ),
    "a prediction without a model": Row(
        lambda home: ["predict", home, home], ("model.onnx: no such file", "that a run has written")
    ),
    "a prediction for no image": Row(
        lambda home: ["predict", home, home / "x.jpg"], ("x.jpg: no such file or folder",)
    ),
    "an evaluation without labels": Row(
        after(
            lambda home: np.savez(home / "x.npz", images=np.zeros((2, 8, 8, 3), np.uint8)),
            lambda home: ["eval", GLYPHS, "--evaluation", home / "x.npz"],
        ),
        ("x.npz: 000000 has no label", "one folder a class"),
    ),
    "sensitivities for no folder": Row(
        lambda home: ["sensitivity", "vit-int8", GLYPHS, "--out", home / "no" / "x.json"],
        ("--out", "there is no folder", "make it first"),
    ),
    "sensitivities of another kind": Row(
        lambda home: ["sensitivity", "vit-int8", GLYPHS, "--out", home / "x.csv"],
        ("x.csv: name it .json, or .html",),
    ),
}
