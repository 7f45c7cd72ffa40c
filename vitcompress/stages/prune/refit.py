"""Site after site: last layers refitted on what they really get, towards the dense model."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from vitcompress import parallel
from vitcompress.console import track
from vitcompress.methods.compensation import Moments, joined, refit, with_constant
from vitcompress.model.anatomy import Anatomy
from vitcompress.model.sizes import fill
from vitcompress.stages.importance import Importance
from vitcompress.stages.sequence import Given, side_by_side

_DAMPINGS = (0.03, 0.1, 0.3, 1.0, 3.0)


def refit_in_sequence(
    dense: Anatomy,
    pruned: Anatomy,
    batches: Iterable[tuple[Tensor, bool]],
    importance: Mapping[str, Importance],
    into: Tensor | None = None,
) -> None:
    """Refit the last layer of every site of `pruned`, one after the other (in place).

    Each sees the inputs that the pruned model gives it. Its target is what brings the stream of
    tokens back to that of the dense model, errors of earlier layers included; it is drawn towards
    the layer it was, as strongly as serves the images held back best, and left alone where no
    strength does. `batches` yield pixels, and whether they are held back. `into` [C', C] is how the
    dense stream becomes that of `pruned`, where they differ in width.
    """
    places = side_by_side(dense, pruned, batches, into)
    for place in track(places, "refitting", len(dense.sites)):
        if place.twin is None:
            continue
        sums: dict[bool, Moments] = {}
        for given in place.fitting("last", back=True):
            found = _moments(given, importance[place.site.name])
            sums[given.held] = found.plus(sums[given.held]) if given.held in sums else found
        sums = parallel.summed_each(sums, Moments)
        layer = place.twin.last
        prior = joined(layer.weight.cpu(), layer.bias.cpu())
        candidates = [prior, *(refit(sums[False], prior, damping) for damping in _DAMPINGS)]
        best = min(candidates, key=sums[True].error)
        fill(layer, best[:-1].T, best[-1])


def _moments(given: Given, importance: Importance) -> Moments:
    x, target = with_constant(given.inputs), given.targets
    weights = importance.token_weights(x.shape[1]).to(x.device)
    weighted = (x * weights[:, None]).flatten(0, 1)
    y = target.flatten(0, 1)
    energy = (target.square().sum((0, 2)) * weights).sum()
    return Moments(
        (weighted.T @ x.flatten(0, 1)).double().cpu(),
        (weighted.T @ y).double().cpu(),
        energy.double().cpu(),
    )
