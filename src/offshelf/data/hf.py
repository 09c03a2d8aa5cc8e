"""The one door to Hugging Face ``datasets``: no telemetry and no download counter, set before the import.

The library asks a counting server at every ``load_dataset``, local files included, unless told otherwise
before it is imported. Every file of ours that needs it writes ``from offshelf.data.hf import datasets``.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"

import datasets

datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # for programs that imported datasets before us

__all__ = ["datasets"]
