"""The errors a run can end with; each class carries the exit code of the command line."""

from vitcompress.lines import printable, shortened

_LONGEST = 1500  # characters, of which names that somebody made up may have had thousands


class VitcompressError(Exception):
    """An error told in one line: what is wrong, where, and what to do about it."""

    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(message), _LONGEST))


class InputError(VitcompressError):
    """The recipe, a file or an option is wrong and the user can mend it."""

    exit_code = 2


class RunError(VitcompressError):
    """The run could not be carried through (disk full, …)."""

    exit_code = 3


class ShortageError(RunError):
    """There is too little memory for `what`."""

    def __init__(self, what: object) -> None:
        super().__init__(
            f"{what}: there is too little memory; end other programs, or give --low-memory"
        )


class ParityError(VitcompressError):
    """An exported model does not compute what the torch model computes."""

    exit_code = 4


_SHORT = ("llocate memory", "out of memory", "bad_alloc", "bad allocation", "failed to map segment")
"""What torch, onnxruntime, the C++ library, the system and its loader say of memory that is not to
be had."""


def lacks_memory(error: BaseException) -> bool:
    """Whether `error` is about memory, for which only Python has a class of its own, or comes of
    one that is."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in _SHORT):
        return True
    return error.__cause__ is not None and lacks_memory(error.__cause__)
