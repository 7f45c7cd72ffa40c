"""What each of several processes does that compress one model together."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from vitcompress import chain, parallel, processor
from vitcompress.cli import main
from vitcompress.data.images import open_images
from vitcompress.export.folder import load_folder
from vitcompress.recipe import Recipe
from vitcompress.run_images import RunImages


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        **{"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }


@torch.no_grad()
def compress(home: Path, stages: list[dict[str, Any]], rank: int, world: int, port: int) -> None:
    """Run `stages` over the model and the images in `home`, and write there what is left."""
    torch.set_num_threads(1)
    processor.multiplies_bfloat16 = lambda: False  # its rounding would hide what is compared
    os.environ |= environment(rank, world, port)
    os.environ["VITCOMPRESS_CACHE"] = str(home / f"cache-{world}")
    with parallel.joined():
        model = dense = load_folder(home / "model")
        images = open_images(home / "images", labelled=False)
        recipe = Recipe.model_validate({"stages": stages})
        options = chain.Options(resume=True)
        context = chain.context_of(recipe, dense, RunImages(images, images), options)
        facts = dict[str, Any]()
        for config in recipe.stages:
            result = chain.carry_out(config, model, context)
            model, facts = result.model, {**facts, config.name: dict(result.facts)}
    facts["skipped"] = sorted(images.skipped)
    torch.save((model.module.state_dict(), facts), home / f"{world}-{rank}.pt")


def command(arguments: list[str], told: Path, rank: int, world: int, port: int) -> None:
    """Run a command; what it prints is in the file `told`."""
    torch.set_num_threads(1)
    os.environ |= environment(rank, world, port)
    with told.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["vitcompress", *arguments]
    main()
