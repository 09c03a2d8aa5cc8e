"""A battle of backbones: the grid of numbers measured, who stands where, and what can be told from it."""
