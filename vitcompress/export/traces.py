"""What torch keeps of a trace after an export, a megabyte each time: let go."""

import linecache

from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv


def let_go(program: ExportedProgram) -> None:
    """Let `program`, from which nothing more is to be made, go once nobody refers to it.

    Its shapes keep fake tensors, whose sizes, in C++, keep the shapes: a ring that the garbage
    collector does not see. Caches of methods keep some of the shapes too, and `linecache` the
    loaders of generated code.
    """
    values = (node.meta.get("val") for node in program.graph.nodes)
    modes = {value.fake_mode for value in values if isinstance(value, FakeTensor)}
    for mode in modes:
        if mode.shape_env is not None and mode.shape_env.tracked_fakes is not None:
            mode.shape_env.tracked_fakes.clear()
    for method in vars(ShapeEnv).values():
        if hasattr(method, "cache_clear"):
            method.cache_clear()
    linecache.clearcache()
