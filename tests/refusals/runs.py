"""Runs that would come to nothing: their recipes, images, labels and places."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.pictures import write_tar
from refusals.making import BLACK, RECIPE, SMALL, Row, after, checkpoint, pictures, run, state


def shard(home: Path, label: str) -> None:
    write_tar(home / "images.tar", {"1.png": BLACK, "1.cls": label.encode()})


def other_channels(home: Path) -> list[Any]:
    torch.save(state(in_chans=4), home / "x.pth")
    pictures(home, "a")
    statistics = ["--set=data.mean=[0,0,0,0]", "--set=data.std=[1,1,1,1]"]
    given = ["--evaluation", home / "images", "--set=task=regression"]
    return ["export", home / "x.pth", *SMALL, *statistics, *given, "--out", home / "out"]


RUNS: dict[str, Row] = {
    "no recipe": Row(lambda _: ["run", "vit-int9"], ("vit-int9", "did you mean vit-int8")),
    "an empty recipe": Row(run(recipe=""), ("r.yaml: the recipe is empty", "stages")),
    "an unknown key of a stage": Row(
        run(recipe=RECIPE.replace("layers", "layer")),
        ("r.yaml:5: stages.quant.layer: unknown key; did you mean layers?",),
    ),
    "a key that has another name now": Row(
        run(recipe=RECIPE.replace("layers", "fine: true, layers")),
        ("r.yaml:5: stages.quant: fine is called residual now; write that",),
    ),
    "a stage that is not there": Row(
        run("--set", "stages.quantize.bits=8"), ("stages.quantize", "quant")
    ),
    "a stage to skip that is not there": Row(
        run("--skip", "quantise"), ("--skip quantise: no such stage; the stages are quant",)
    ),
    "an unknown type of stage": Row(
        run(recipe=RECIPE.replace("quantize", "quantise")),
        ("r.yaml:5", "unknown type; did you mean quantize?"),
    ),
    "layers that match none": Row(
        run("--set", 'stages.quant.layers=["block.*"]'), ("stages.quant.layers", "blocks.")
    ),
    "a gate of another task": Row(
        run("--set", "gates.min.cosine=0.9", "--set", "data.evaluation=null"),
        ("gates.min.cosine: the task classification has no cosine", "agreement"),
    ),
    "an earlier run that is none": Row(
        run("--against", "HOME/gone"), ("gone: no output folder of a run, nor its report.json",)
    ),
    "an earlier run of another task": Row(
        after(
            lambda home: (home / "report.json").write_text(
                '{"model": {}, "baseline": {}, "final": {"cosine": 0.9, "bytes": 9}}'
            ),
            run("--against", "HOME/report.json"),
        ),
        ("--against: that run has no figure of the task classification", "same task"),
    ),
    "a device that is not there": Row(
        run("--device", "nonsense"), ("--device nonsense: not to be had here; use cpu",)
    ),
    "a device that computes nothing": Row(
        run("--device", "meta"), ("--device meta: not to be had here; use cpu",)
    ),
    "images that are not there": Row(
        run("--calibration", "HOME/gone"), ("gone: no such file or folder",)
    ),
    "a folder without images": Row(
        after(lambda home: (home / "empty").mkdir(), run("--calibration", "HOME/empty")),
        ("no images found in", "empty"),
    ),
    "a file that holds no images": Row(
        after(lambda home: (home / "x.csv").touch(), run("--calibration", "HOME/x.csv")),
        ("x.csv: images come from a folder, a .tar or a .npz",),
    ),
    "classes of another model": Row(
        after(lambda home: pictures(home, "a", "b"), run("--evaluation", "HOME/images")),
        ("images: its labels name 2 classes and the model has 3", "--classes FILE"),
    ),
    "a class that the list lacks": Row(
        after(
            lambda home: [pictures(home, "a", "b"), (home / "c.txt").write_text("a\nc\n")],
            run("--evaluation", "HOME/images", "--classes", "HOME/c.txt"),
        ),
        ("images: class b is not named in", "c.txt; add it there"),
    ),
    "a list of classes that is not there": Row(
        run("--classes", "HOME/gone.txt"), ("gone.txt: no such file", "one folder name a line")
    ),
    "a label of −1": Row(
        after(lambda home: shard(home, "-1"), run("--evaluation", "HOME/images.tar")),
        ("images.tar: has the label -1, which is no class", "from 0"),
    ),
    "a label of no class": Row(
        after(lambda home: shard(home, "99"), run("--evaluation", "HOME/images.tar")),
        ("images.tar: has the label 99 and the model 3 classes",),
    ),
    "images of other channels": Row(other_channels, ("images", "3 channel(s), and the model 4")),
    "statistics of other channels": Row(
        checkpoint(lambda: state(in_chans=4)), ("data.mean", "4 number(s) each")
    ),
    "a classifier of no embedding": Row(
        after(
            lambda home: np.save(home / "c.npy", np.ones((2, 2), np.float32)),
            run("--set", "data.classifier=HOME/c.npy"),
        ),
        ("data.classifier: is for embeddings", "task: embedding"),
    ),
    "a place below a file": Row(
        after(lambda home: (home / "file").touch(), run("--out", "HOME/file/out")),
        ("--out", "file/out: cannot be written to"),
    ),
    "a place with something else in it": Row(
        after(
            lambda home: [(home / "mine").mkdir(), (home / "mine" / "thesis.tex").touch()],
            run("--out", "HOME/mine"),
        ),
        ("--out", "mine: exists and is no output of vitcompress; give another place"),
    ),
}
