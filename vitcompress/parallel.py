"""Several processes that compress one model together.

They are started as `torchrun -m vitcompress run …` starts them. Batches of images are dealt to them
in turn. What comes of these is summed, or gathered in the order
in which one process would have it, so that all processes decide alike. The first one alone prints,
keeps results for later, exports and measures. A process that is alone computes as if nothing of
this were there.
"""

import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from vitcompress.console import console
from vitcompress.errors import InputError, RunError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

_START = timedelta(minutes=5)  # for all processes to come
_PATIENCE = timedelta(hours=12)  # with one that exports or measures; one that ends is noticed
_LEAVING = 10.0  # seconds that the first one stays for the others to read why they end
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class _Group:
    """`store`: a few words that processes leave for one another."""

    rank: int
    world: int
    store: "Store"


_group: _Group | None = None


@contextmanager
def joined() -> Iterator[None]:
    """The processes that were started together as one group, inside; nothing for one process.

    All but the first are quiet there.
    Raises `RunError` where not all of them come.
    """
    global _group
    if _group is not None or os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    _group, quiet = _started(), console.quiet
    console.quiet = quiet or not is_first()
    try:
        yield
    finally:
        _leave(_group)
        _group, console.quiet = None, quiet


def rank() -> int:
    return 0 if _group is None else _group.rank


def world() -> int:
    """How many processes there are."""
    return 1 if _group is None else _group.world


def is_first() -> bool:
    return rank() == 0


def alone() -> bool:
    return _group is None


def device_name(name: str) -> str:
    """Where this process computes: of several on a machine, each has a GPU of its own."""
    return name if alone() or name != "cuda" else f"cuda:{_local_rank()}"


def dealt(items: Iterable[T]) -> Iterator[T]:
    """Those of `items` that this process takes: dealt in turn."""
    return islice(items, rank(), None, world())


def passed_over(number: int) -> int:
    """How many items other processes take right before this one takes its item `number`."""
    return rank() if number == 0 else world() - 1


def summed(values: "Mapping[K, Tensor]") -> "dict[K, Tensor]":
    """The sums over all processes, to the last bit the same in each.

    A process may lack any name, as one that has got no images does.
    """
    return _reduced(values, "SUM")


def summed_each(found: "Mapping[K, Iterable[Tensor]]", made: "Callable[..., V]") -> "dict[K, V]":
    """Of each name, what is `made` of the sums over all processes, as `summed` gives them, of its
    tensors, of which all names have as many in any process."""
    sums = summed({(name, i): x for name, each in found.items() for i, x in enumerate(each)})
    names = dict.fromkeys(name for name, _ in sums)
    parts = {name: [x for (other, _), x in sums.items() if other == name] for name in names}
    return {name: made(*each) for name, each in parts.items()}


def largest(values: "Mapping[K, Tensor]") -> "dict[K, Tensor]":
    """The largest values, element by element, of all processes; else as `summed`."""
    return _reduced(values, "MAX")


def add_in_place(tensors: "Iterable[Tensor]") -> None:
    """Make each of `tensors` the sum over all processes, which all have them."""
    if alone():
        return
    from torch import distributed

    with _exchange():
        for tensor in tensors:
            total = tensor.contiguous()
            distributed.all_reduce(total)
            tensor.copy_(total)


def take_over(tensors: "Iterable[Tensor]") -> None:
    """Make each of `tensors` that of the first process (in place)."""
    if alone():
        return
    import torch
    from torch import distributed

    with _exchange():
        for tensor in tensors:
            whole = tensor.contiguous()
            distributed.broadcast(whole.flatten().view(torch.uint8), 0)
            tensor.copy_(whole)


def everybody(value: T) -> list[T]:
    """What all processes have, by rank."""
    if alone():
        return [value]
    from torch import distributed

    found: list[T] = [value] * world()
    with _exchange():
        distributed.all_gather_object(found, value)
    return found


def gathered(parts: "Iterable[Tensor]") -> "list[Tensor]":
    """What all processes made of items that were `dealt`, in the order of these; of several
    processes, on the CPU."""
    if alone():
        return list(parts)
    turns = zip_longest(*everybody([part.cpu().clone() for part in parts]))
    return [part for turn in turns for part in turn if part is not None]


def from_first(make: Callable[[], T] | None = None) -> T:
    """What `make` gives in the first process, for all; only there it is called, and needed."""
    made = make() if make is not None and is_first() else None
    if alone():
        return cast(T, made)
    from torch import distributed

    found = [made]
    with _exchange():
        distributed.broadcast_object_list(found, 0)
    return cast(T, found[0])


def check_same(value: object, what: str) -> None:
    """Raise `InputError` where `value` is not the same in all processes."""
    every = everybody(value)
    for other, found in enumerate(every):
        if found != every[0]:
            both = f", {found} and not {every[0]}" if len(str(found)) < 20 else ""  # a digest
            raise InputError(
                f"process {other} has another {what} than the first{both}; give all the same"
            )


def ending(code: int) -> tuple[int, bool]:
    """The exit code that all end with where this process has to end with `code`; and whether it is
    the first that has to, and is to say why."""
    if _group is None:
        return code, True
    try:
        leads = _group.store.add("ended", 1) == 1
        if leads:
            _group.store.set("code", str(code))
        return int(_group.store.get("code")), leads
    except RuntimeError:  # whoever held the store is gone without a word
        return code, True


def _started() -> _Group:
    """Find the other processes, and connect to them."""
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if missing := [name for name in _ENVIRONMENT if not os.environ.get(name)]:
        raise InputError(
            f"WORLD_SIZE: there are several processes, and {', '.join(missing)} is not set; start "
            "them with torchrun"
        )
    if not distributed.is_available():
        raise RunError("this build of torch is for one process; start it without torchrun")
    try:
        store, rank, world = next(rendezvous("env://", timeout=_START))
        if store.add("here", 1) == world:
            store.set("all here", "1")
        store.wait(["all here"], _START)
        gpus = distributed.is_nccl_available() and torch.cuda.is_available()
        if gpus:
            torch.cuda.set_device(_local_rank())
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=PrefixStore("group", store),
            rank=rank,
            world_size=world,
            timeout=_PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise RunError(f"the processes do not find one another: {why}") from error
    return _Group(rank, world, store)


def check_alike() -> None:
    """Raise `InputError` where processes would compute differently."""
    from importlib.metadata import version

    import torch

    for package in ("vitcompress", "torch"):
        check_same(version(package), f"version of {package}")
    check_same(torch.get_num_threads(), "number of threads")


def _leave(group: _Group) -> None:
    """Let go of the others, which wakes those that wait for this process."""
    from torch import distributed

    with suppress(RuntimeError):
        distributed.destroy_process_group()
        until = time.monotonic() + _LEAVING
        left = group.store.add("left", 1)
        while group.rank == 0 and left < group.world and time.monotonic() < until:
            time.sleep(0.02)
            left = group.store.add("left", 0)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _reduced(values: "Mapping[K, Tensor]", operation: Literal["SUM", "MAX"]) -> "dict[K, Tensor]":
    if alone():
        return dict(values)
    import torch
    from torch import distributed

    neutral = {"SUM": 0.0, "MAX": -torch.inf}[operation]
    kinds = {name: (tuple(value.shape), value.dtype) for name, value in values.items()}
    every = {name: kind for each in everybody(kinds) for name, kind in each.items()}
    found: dict[K, torch.Tensor] = {}
    with _exchange():
        for name, (shape, dtype) in every.items():
            own = values.get(name)
            if own is None:
                total = torch.full(shape, neutral, dtype=dtype)
            else:
                total = own.clone(memory_format=torch.contiguous_format)
            distributed.all_reduce(total, getattr(distributed.ReduceOp, operation))
            found[name] = total
    return found


@contextmanager
def _exchange() -> Iterator[None]:
    """Raises `RunError` where another process has ended, or takes too long."""
    try:
        yield
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise RunError(f"the exchange with another process has failed: {why}") from error
