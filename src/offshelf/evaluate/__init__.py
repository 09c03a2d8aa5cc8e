"""How well something works: folds, metrics with intervals, comparisons, controls, and the protocols that fix them."""
