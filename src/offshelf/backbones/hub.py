"""Weights of the Hugging Face hub: what the local cache holds, and a download where the hub can be reached.

Only safetensors are accepted. Pickled weights (``pytorch_model.bin``, ``.pth``) can run code when they are opened.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from offshelf.errors import BackboneError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".tar")
CONNECT_SECONDS = 3.0


def cache_folder() -> Path:
    """The hub's cache folder by the environment as it is now (the hub's client reads it only once, at import)."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "huggingface" / "hub"


def cached_file(repository: str, filename: str, revision: str | None = None) -> Path | None:
    """The path of a repository's file in the local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, filename, cache_dir=cache_folder(), revision=revision)
    return Path(found) if isinstance(found, str) else None


def cached_repositories() -> list[str]:
    """``owner/name`` of every model repository whose safetensors weights lie in the local cache, sorted."""
    folder = cache_folder()
    if not folder.is_dir():
        return []
    found = []
    for path in folder.glob("models--*--*"):
        owner, _, name = path.name.removeprefix("models--").partition("--")
        if cached_file(f"{owner}/{name}", WEIGHTS_FILE):
            found.append(f"{owner}/{name}")
    return sorted(found)


def cached_names() -> list[str]:
    """Names under which `load_backbone` finds weights in the local cache: ``arch.tag`` or ``hf-hub:owner/name``."""
    from timm.models import get_pretrained_cfg, list_pretrained

    tagged: dict[str, str] = {}
    for name in list_pretrained():
        config = get_pretrained_cfg(name)
        if config is not None and config.hf_hub_id:
            tagged.setdefault(config.hf_hub_id, name)
    names = []
    for repository in cached_repositories():
        if repository in tagged:
            names.append(tagged[repository])
        elif _is_timm(cached_file(repository, CONFIG_FILE)):
            names.append(f"hf-hub:{repository}")
    return names


def _is_timm(config: Path | None) -> bool:
    if config is None:
        return False
    try:
        return "architecture" in json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False  # somebody else's damaged repository: it is not offered; loading it by name says what is wrong


def endpoint() -> str:
    """The hub's address by the environment as it is now."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def unreachable() -> str:
    """Why nothing can be downloaded right now, as a clause; an empty string when the hub answers.

    The host (or the proxy that stands before it) must take a TCP connection within three seconds. The connection is
    tried in a thread of its own, since the look-up of a host name knows no time limit.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    address = urllib.parse.urlsplit(endpoint())
    host = address.hostname or "huggingface.co"
    proxy = urllib.request.getproxies().get(address.scheme or "https")
    if proxy and not urllib.request.proxy_bypass(host):
        address = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = address.port or (80 if address.scheme == "http" else 443)
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, port), timeout=CONNECT_SECONDS).close()
            reached.set()
        except OSError:
            return  # not reached: the event stays unset, which is the answer

    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(CONNECT_SECONDS)
    return "" if reached.is_set() else f"{host} cannot be reached"


def fetch(repository: str, filename: str, revision: str | None = None) -> Path:
    """The local path of a repository's file, from the cache, else downloaded into it.

    Raises
    ------
    UnreachableError
        When it is not in the cache and the hub cannot be asked; the message is a clause.
    BackboneError
        When the hub was asked and refused, or the repository has no such file.
    """
    if found := cached_file(repository, filename, revision):
        return found
    if filename == WEIGHTS_FILE and (pickles := _cached_pickles(repository)):
        raise BackboneError(pickle_refusal(f"{repository} (in the hub cache)", pickles))
    if reason := unreachable():
        raise UnreachableError(reason)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    place = f"{repository}@{revision}" if revision else repository
    try:
        return Path(
            hf_hub_download(repository, filename, revision=revision, cache_dir=cache_folder(), endpoint=endpoint())
        )
    except RepositoryNotFoundError as error:
        raise BackboneError(
            f"{place}: {endpoint()} knows no such public repository (or it asks for a login); check the name"
        ) from error
    except LocalEntryNotFoundError as error:  # the hub's client says so when the connection broke, not the name
        raise UnreachableError(f"the connection to {endpoint()} failed") from error
    except EntryNotFoundError as error:
        raise BackboneError(
            f"{place}: this repository has no {filename}; expected weights as safetensors beside a timm config.json "
            "(pickled weights are not opened, since they can run code). Choose another repository."
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"{place}: downloading {filename} failed ({first}); try again, nothing is left half"
        ) from error


class UnreachableError(Exception):
    """The hub cannot be asked; the text says why in one clause. Callers add what there is instead."""


def pickle_refusal(place: str, pickles: list[str]) -> str:
    """The sentence that refuses pickled weights."""
    return (
        f"{place} holds its weights only as {', '.join(pickles)}, a pickle, which can run code when it is opened; "
        f"expected {WEIGHTS_FILE}. Convert it where you trust it, or choose weights published as safetensors."
    )


def _cached_pickles(repository: str) -> list[str]:
    snapshots = cache_folder() / f"models--{repository.replace('/', '--')}" / "snapshots"
    return sorted({path.name for path in snapshots.glob("*/*") if path.suffix in PICKLES})
