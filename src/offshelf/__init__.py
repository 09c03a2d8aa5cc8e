"""offshelf."""
