"""Commands as a user types them, and what is left of them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import vitcompress

# The head of a recipe for the embedded example; stages follow.
EXAMPLE = """
model: {checkpoint: "example:glyphs"}
data:
  calibration: "example:glyphs/calibration"
  evaluation: "example:glyphs/evaluation"
  images: 64
"""

SHALLOW = 2  # blocks that whole runs have of the embedded example
_ROOT = Path(vitcompress.__file__).parents[1]
_QUICK = f"""#!{sys.executable}
from functools import partial
import gc, sys
sys.path[:0] = [{str(_ROOT)!r}, {str(_ROOT / "tests")!r}]
if "run" in sys.argv:
    from pathlib import Path
    gc.disable()
    from helpers import operators
    from vitcompress import pipeline
    from vitcompress.example import glyphs
    glyphs.CHECKPOINT = Path(sys.argv[0]).with_name("glyphs.safetensors")
    glyphs.TIMM_OPTIONS["depth"] = {SHALLOW}
    operators.find_once()
    pipeline.time_in_turns = partial(pipeline.time_in_turns, seconds=0)
from vitcompress.cli import main
main()
"""


def write_quick_command(folder: Path, example: Path) -> Path:
    """Write `vitcompress` into `folder`: whole runs of the embedded example, of which it takes the
    first blocks in the file `example`, time them for a moment and parse operators once."""
    folder.mkdir()
    shutil.copyfile(example, folder / "glyphs.safetensors")
    command = folder / "vitcompress"
    command.write_text(_QUICK)
    command.chmod(0o755)
    return command


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
