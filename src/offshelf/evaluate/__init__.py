"""How well something works: folds, metrics with intervals, paired comparisons, controls and the protocols that fix them."""
