"""Commands as a user types them, and what is left of them."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

# The head of a recipe for the embedded example; stages follow.
EXAMPLE = """
model: {checkpoint: "example:glyphs"}
data:
  calibration: "example:glyphs/calibration"
  evaluation: "example:glyphs/evaluation"
  images: 64
"""


class Called(NamedTuple):
    """What a command has printed."""

    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """What it was asked for by `--json`."""
        return json.loads(self.stdout)

    @property
    def told(self) -> str:
        """stderr on one line, however wide the terminal is."""
        return " ".join(self.stderr.split())

    @property
    def error(self) -> str:
        """The last line of stderr, which says why the command has failed."""
        line = self.stderr.strip().splitlines()[-1]
        assert line.startswith(("error: ", "failed: ")), self.stderr
        return line


Call = Callable[..., Called]
