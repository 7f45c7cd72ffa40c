"""w² E[x²] E[g²]: the diagonal Fisher information with inputs and gradients apart."""

from torch import Tensor

from vitcompress.stages.sparsify.criteria import Asked, by_score


def score(asked: Asked) -> Tensor:
    inputs, outputs = asked.moments.second, asked.moments.outputs.double()
    return asked.weight.double().square() * inputs * outputs[:, None]


CRITERION = by_score(score)
