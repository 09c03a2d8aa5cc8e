"""Weights that no network is needed for: a small hub cache, and a hub that does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """The hub is a port nobody listens on, and its cache an empty folder."""
    for variable in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HF_HUB_OFFLINE", "HF_HOME", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def hub_cache(tmp_path):
    """A function that puts files of a repository into the cache, as the hub's client lays them out."""

    def put(repository: str, **files: bytes | dict) -> Path:
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        for name, content in files.items():
            path = snapshot / name.replace("__", ".")
            if isinstance(content, dict):
                save_file(content, path)
            else:
                path.write_bytes(content)
        return snapshot

    return put


@pytest.fixture
def seeded():
    """A function giving a timm network with weights, running statistics and affine parameters drawn from a seed."""

    def make(name: str, seed: int = 0, **settings) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = timm.create_model(name, **settings)
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
                    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                    torch.nn.init.normal_(module.bias, 0, 0.1)
        return model.eval().requires_grad_(False)

    return make
