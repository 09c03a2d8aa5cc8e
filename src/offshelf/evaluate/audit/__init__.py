"""Is the data sound? Checks of a data set before anything is trained on it, one file a question."""
