"""Pickles of torch, read without importing or calling what they name.

torch's unpickler makes tensors and containers, and refuses any name that it was not given. Here,
it is given names of plain data that training scripts keep beside the weights, and for each of them
a stand-in that keeps nothing: none of the types themselves is ever made from a file. Some are not
harmless: a dtype of numpy set to a made-up state reads memory that is not its own, a path that is
not pure reaches the file system, and a defaultdict calls what it was given.
"""

import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from vitcompress.errors import InputError
from vitcompress.foreign import check_archive

RESAVE = (
    "re-save only the state dict: torch.save(model.state_dict(), 'model.pth'), or as safetensors"
)


class _Inert:
    """In the place of a value, or of a type that is only named."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _Mapping:
    """Makes the one kind of mapping that the unpickler fills and gives attributes."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict[Any, Any]()


class _List:
    """Makes the one kind of list that the unpickler appends to."""

    def __new__(cls, *_: object) -> Any:
        return []


_SCALARS = "bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 str_"
_NAMES: tuple[tuple[type, str, str], ...] = (
    (_Inert, "builtins", "bool bytes float frozenset int object range slice str tuple"),
    (_Mapping, "builtins", "dict"),
    (_List, "builtins", "list"),
    (_Mapping, "collections", "defaultdict"),
    (_List, "collections", "deque"),
    (_Inert, "argparse", "Namespace"),
    (_Inert, "types", "SimpleNamespace"),
    (_Inert, "typing", "Any"),
    (_Inert, "datetime", "date datetime time timedelta timezone"),
    (_Inert, "decimal", "Decimal"),
    (_Inert, "fractions", "Fraction"),
    (_Inert, "uuid", "UUID"),
    *(
        (_Inert, module, "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath")
        for module in ("pathlib", "pathlib._local")
    ),
    (_Inert, "numpy", f"dtype ndarray {_SCALARS}"),
    (_Inert, "numpy.dtypes", "Float16DType Float32DType Float64DType Int32DType Int64DType"),
    (_Inert, "numpy.core.multiarray", "_reconstruct scalar"),
    (_Inert, "numpy._core.multiarray", "_reconstruct scalar"),
    (_Inert, "torch.torch_version", "TorchVersion"),
    (_Mapping, "pytorch_lightning.utilities.parsing", "AttributeDict"),
    (_Mapping, "lightning_fabric.utilities.data", "AttributeDict"),
    (_Mapping, "lightning.fabric.utilities.data", "AttributeDict"),
    (_Mapping, "yacs.config", "CfgNode"),
    (_Mapping, "easydict", "EasyDict"),
    (_Mapping, "addict.addict", "Dict"),
    (_Inert, "omegaconf.dictconfig", "DictConfig"),
    (_Inert, "omegaconf.listconfig", "ListConfig"),
    (_Inert, "omegaconf.base", "ContainerMetadata Metadata"),
    (_Inert, "omegaconf.nodes", "AnyNode BooleanNode FloatNode IntegerNode StringNode"),
)
_STAND_INS: dict[str, type] = {
    f"{module}.{name}": made for made, module, names in _NAMES for name in names.split()
}
# What torch would call, and be asked for as many zeros as somebody likes.
_HUGE = {"builtins.bytearray", "__builtin__.bytearray"}
_KNOWN = {*_STAND_INS, "collections.OrderedDict"}


def read_pickle(path: Path) -> Any:
    """What torch.save wrote to `path`, on the CPU.

    Raises `InputError` for what is damaged, is no such file, or names other than plain data.
    """
    try:
        if zipfile.is_zipfile(path):
            check_archive(path, path.stat().st_size)
        if huge := next((name for name in _named(path) if name in _HUGE), None):
            raise ValueError(f"GLOBAL {huge}")
        with warnings.catch_warnings(), _only_stand_ins():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged files it raises almost anything
        raise InputError(f"{path}: {_reason(path, str(error))}") from error


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Gives torch's unpickler these names and, meanwhile, none that other libraries gave it."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(made, name) for name, made in _STAND_INS.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _reason(path: Path, told: str) -> str:
    if "TorchScript" in told:
        return f"a TorchScript archive, which holds code; {RESAVE}"
    if "legacy .tar" in told:
        return f"an archive (tar); unpack it and give the checkpoint in it, or {RESAVE}"
    named = re.search(r"GLOBAL (\S+)", told)
    refused = named[1] if named else next((n for n in _named(path) if n not in _KNOWN), None)
    if refused:
        return f"holds a pickled {refused}, which could run code and is not loaded; {RESAVE}"
    if re.search(r"operand (140|149)\b", told):  # of the protocols from 4 on
        return f"not pickled by the protocol that torch.save has by itself, 2; {RESAVE}"
    return f"truncated or not a torch checkpoint; copy or download it again, or {RESAVE}"


def _named(path: Path) -> Iterator[str]:
    """The types and functions that the pickles in `path` name, found without executing them; as far
    as these are whole."""
    with suppress(Exception):  # no pickle, or a damaged one: torch will say
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                while True:  # those of before torch 1.6 have several, one after the other
                    yield from _globals(file)
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as member:
                        yield from _globals(member)


def _globals(file: IO[bytes]) -> Iterator[str]:
    """What the next pickle in `file` names."""
    strings: list[str] = []
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings = [*strings[-1:], argument]
