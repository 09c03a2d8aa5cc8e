"""Samples in: folders, tables, archives, hub names, arrays; pictures decoded late, from bytes."""
