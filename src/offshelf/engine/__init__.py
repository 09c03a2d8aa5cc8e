"""What none of the papers is about: files, runs, the feature cache, the training loop, progress."""
