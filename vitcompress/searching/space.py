"""The combinations of what the stages of a recipe may be."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from vitcompress.errors import InputError
from vitcompress.recipe import Recipe
from vitcompress.searching.config import Choice
from vitcompress.stages.registry import StageConfig

Combination = tuple[int, ...]
"""Of each stage with choices, in the order of the chain, the number of the one that is taken."""


def alone(combination: Combination, place: int) -> Combination:
    """The start of a search, but for what `combination` takes at `place`."""
    return tuple(number if i == place else 0 for i, number in enumerate(combination))


@dataclass(frozen=True)
class Space:
    """The chains that a recipe allows. `stages`: by name, what those with choices may be; None:
    left out."""

    recipe: Recipe
    stages: dict[str, tuple[StageConfig | None, ...]]

    @property
    def start(self) -> Combination:
        return (0,) * len(self.stages)

    def chain(self, combination: Combination) -> tuple[StageConfig, ...]:
        """The stages of one chain."""
        taken = dict(zip(self.stages, combination, strict=True))
        found = (
            self.stages[config.name][taken[config.name]] if config.name in taken else config
            for config in self.recipe.stages
        )
        return tuple(config for config in found if config is not None)

    def every(self) -> Iterator[Combination]:
        return itertools.product(*(range(len(each)) for each in self.stages.values()))

    def singles(self) -> list[Combination]:
        """Those that differ from the start in one stage."""
        return [
            alone((number,) * len(self.stages), place)
            for place, each in enumerate(self.stages.values())
            for number in range(1, len(each))
        ]

    def told(self, combination: Combination) -> dict[str, str]:
        """By stage, what is taken, in the words of the recipe."""
        choices = self.recipe.search.choices
        taken = zip(self.stages, combination, strict=True)
        return {name: _words(choices[name][number]) for name, number in taken}


def space_of(recipe: Recipe) -> Space:
    """Raises `InputError` for a choice of a stage that is not there, or that the stage cannot be,
    and where nothing can be chosen."""
    configs = {config.name: config for config in recipe.stages}
    for name in recipe.search.choices:
        if name not in configs:
            raise InputError(
                f"search.choices.{name}: the recipe has no stage of this name; it has "
                f"{', '.join(configs)}"
            )
    stages = {
        config.name: tuple(
            _changed(config, choice, f"search.choices.{config.name}[{number}]")
            for number, choice in enumerate(recipe.search.choices[config.name])
        )
        for config in recipe.stages
        if config.name in recipe.search.choices
    }
    if all(len(each) == 1 for each in stages.values()):
        raise InputError("search.choices: leave nothing to choose; give a stage two choices")
    return Space(recipe, stages)


def _changed(config: StageConfig, choice: Choice, where: str) -> StageConfig | None:
    if choice is None:
        return None
    if named := {"name", "type"} & set(choice):
        raise InputError(f"{where}.{min(named)}: is that of the stage; leave it out")
    given = config.model_dump(exclude_unset=True)
    try:
        return type(config).model_validate({**given, **choice, "type": config.type})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (where, *first["loc"])))
        raise InputError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


def _words(choice: Choice) -> str:
    if choice is None:
        return "left out"
    return ", ".join(f"{key} {_plain(value)}" for key, value in choice.items()) or "as it is"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return str(value)
