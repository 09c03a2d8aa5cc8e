"""Data sets of the Hugging Face Hub, asked for by name; quick and plain when there is no network."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from urllib.parse import urlparse

from offshelf.data.hf import datasets
from offshelf.errors import DataError

ENDPOINT = "https://huggingface.co"
WAIT = 3.0  # seconds


def load_from_hub(name: str) -> datasets.Dataset | datasets.DatasetDict:
    """Fetch ``owner/name``, or take it from the local cache when ``HF_HUB_OFFLINE=1``.

    Raises
    ------
    DataError
        The hub cannot be reached (found out within three seconds), or it has no such data set.
    """
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if not offline and not reachable(os.environ.get("HF_ENDPOINT") or ENDPOINT):
        host = urlparse(os.environ.get("HF_ENDPOINT") or ENDPOINT).hostname
        raise DataError(
            f"{name}: no such file or folder here, and {host} cannot be reached to look for a data set of that name. "
            "Check the path or the network; if it was fetched before, set HF_HUB_OFFLINE=1 to use that copy."
        )
    try:
        return datasets.load_dataset(name)
    except Exception as error:  # the library raises a dozen types, some with a page of text
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        place = "in the local cache (HF_HUB_OFFLINE is set)" if offline else "from the hub"
        raise DataError(
            f"{name}: cannot be read {place}: {first} Check the name, or download the data set and point to its folder."
        ) from error


def reachable(endpoint: str) -> bool:
    """Whether a TCP connection to the host (or to the proxy in front of it) opens within three seconds."""
    url = urlparse(endpoint)
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        through = urlparse(proxy if "://" in proxy else f"http://{proxy}")
        host, port = through.hostname or "", through.port or 80
    opened = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=WAIT).close()
        except OSError:
            return  # not reachable is the answer, and the event stays unset
        opened.set()

    attempt = threading.Thread(target=connect, daemon=True)  # name look-up has no time limit of its own
    attempt.start()
    attempt.join(WAIT)
    return opened.is_set()
