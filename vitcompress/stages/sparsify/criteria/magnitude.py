"""w² (Essential Sparsity's one-shot pruning, 2306.03805)."""

from vitcompress.stages.sparsify.criteria import by_score

CRITERION = by_score(lambda asked: asked.weight.double().square())
