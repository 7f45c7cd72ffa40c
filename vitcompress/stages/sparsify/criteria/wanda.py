"""w² E[x²], weights compared within their row (Wanda, 2306.11695, squared)."""

from vitcompress.stages.sparsify.criteria import by_score

CRITERION = by_score(
    lambda asked: asked.weight.double().square() * asked.moments.second, by_row=True
)
