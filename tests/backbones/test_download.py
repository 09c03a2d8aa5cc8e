from __future__ import annotations

import hashlib
import http.server
import threading

import pytest
from safetensors.torch import save

from offshelf.backbones import hub
from offshelf.backbones.load import load_backbone
from offshelf.errors import BackboneError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def small_hub(monkeypatch):
    """A hub on this machine: a dict of ``owner/name/file`` to bytes, served as huggingface.co serves files."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            repository, marker, name = self.path.lstrip("/").partition("/resolve/main/")
            content = files.get(f"{repository}/{name}") if marker else None
            known = any(key.startswith(f"{repository}/") for key in files)
            self.send_response(200 if content is not None else 404)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound" if known and marker else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            return content

        def do_GET(self):
            self.wfile.write(self.do_HEAD() or b"")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield files
    server.shutdown()
    server.server_close()


def test_weights_are_fetched_once_and_then_found(small_hub, seeded, monkeypatch):
    native = seeded("test_resnet")
    small_hub["timm/test_resnet.r160_in1k/model.safetensors"] = save(native.state_dict())
    card = load_backbone("test_resnet").card
    assert (card.weights, card.note) == ("hub", f"timm/test_resnet.r160_in1k at revision {COMMIT[:12]}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_backbone("test_resnet").card == card
    assert hub.cached_names() == ["test_resnet.r160_in1k"]


def test_a_repository_without_safetensors_is_refused(small_hub):
    small_hub["timm/test_resnet.r160_in1k/pytorch_model.bin"] = b"cos\nsystem\n(S'false'\ntR."
    with pytest.raises(BackboneError, match=r"has no model\.safetensors; .*they can run code"):
        load_backbone("test_resnet")


def test_an_unknown_repository_is_named(small_hub):
    small_hub["timm/other/model.safetensors"] = b""
    with pytest.raises(BackboneError, match="someone/thing: http.* knows no such public repository"):
        load_backbone("hf-hub:someone/thing")


def test_nothing_is_asked_when_the_hub_is_switched_off(small_hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE is set"):
        load_backbone("test_resnet")
    assert hub.unreachable() == "HF_HUB_OFFLINE is set"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert hub.unreachable() == ""
