"""The order of the stages of a chain: what changes a model less comes first.

Each stage is fitted to the model that it gets, and what it chooses and compensates for is the worse
founded, the further that model is from the dense one: weaker perturbation first (2603.18426).
"""

from collections.abc import Sequence

from vitcompress.stages.registry import StageConfig

_RANKS = {"prune": 1, "merge": 2, "sparsify": 3, "recover": 4, "quantize": 5}
"""From what should come first to what should come last, by type; `recover` may come again after
any of them. Stages that are not named change no answers."""


def losing_orders(stages: Sequence[StageConfig]) -> list[str]:
    """A line for each stage that comes after one that should come later."""
    found = list[str]()
    for place, later in enumerate(stages):
        if later.type == "recover" or later.type not in _RANKS:
            continue
        recovers = any(each.type == "recover" for each in stages[place:])
        for earlier in stages[:place]:
            if _RANKS.get(earlier.type, 0) <= _RANKS[later.type]:
                continue
            if earlier.type != "recover":
                why, other = f"{earlier.name} changes the model more", ""
            elif not recovers:
                why, other = "nothing wins back what it loses", ", or add a stage recover after it"
            else:
                continue
            found.append(
                f"stages.{later.name}: comes after {earlier.name}, and {why}; "
                f"put it before {earlier.name}{other}"
            )
            break
    return found
