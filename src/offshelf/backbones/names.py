"""What a backbone may be called, and what to say when the name is wrong.

`arch.tag`                        timm's name; `arch` alone means timm's default tag
`arch.random`, `arch.random_7`    random weights from seed 0, from seed 7
`arch.offshelf_<method>_<data>`   weights that come with this package
`hf-hub:owner/name[@revision]`    a repository of the hub in timm's format
a path                            a folder in timm's format, or a run folder
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offshelf.backbones import embedded
from offshelf.backbones.architectures import register_architectures
from offshelf.errors import BackboneError, near

Kind = Literal["tag", "random", "embedded", "hub", "folder", "run"]
_RANDOM = re.compile(r"(?P<architecture>[^.]+)\.random(?:_(?P<seed>\d+))?")


@dataclass(frozen=True)
class Source:
    """Where one name leads: its kind, and as much of the rest as belongs to that kind."""

    kind: Kind
    name: str
    architecture: str = ""
    seed: int = 0
    folder: Path = Path()
    repository: str = ""
    revision: str | None = None


def resolve(name_or_path: str | os.PathLike[str]) -> Source:
    """Say where a name leads, without loading anything.

    Raises
    ------
    BackboneError
        For a name that leads nowhere; near names are offered.
    """
    from timm.models import get_pretrained_cfg, list_pretrained

    register_architectures()
    text = os.fspath(name_or_path)
    if text.startswith("hf-hub:"):
        repository, _, revision = text.removeprefix("hf-hub:").partition("@")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise BackboneError(f"{text!r}: expected hf-hub:owner/name, for example hf-hub:timm/resnet18.a1_in1k")
        return Source("hub", text, repository=repository, revision=revision or None)
    if isinstance(name_or_path, Path) or _is_path(text):
        return _folder(text)

    architecture, _, tag = text.partition(".")
    if architecture in architectures():
        if Path(text).is_dir() and any((Path(text) / file).exists() for file in ("config.json", "run.json")):
            raise BackboneError(f"{text!r} is both a timm network and a folder here; write ./{text} for the folder")
        if text in embedded.EMBEDDED:
            return Source("embedded", text, architecture, folder=embedded.WEIGHTS / text)
        if random := _RANDOM.fullmatch(text):
            return Source("random", text, architecture, seed=int(random["seed"] or 0))
        if not tag:
            default = get_pretrained_cfg(text)
            if default is None or not default.tag or not (default.hf_hub_id or default.url):
                raise BackboneError(
                    f"{text}: no pre-trained weights are published for this design; use '{text}.random' for random "
                    "weights, or a folder of your own weights"
                )
            return Source("tag", f"{text}.{default.tag}", architecture)
        if text in list_pretrained(f"{architecture}.*"):
            return Source("tag", text, architecture)
        raise BackboneError(_unknown_tag(text, architecture, tag))
    if Path(text).is_dir():
        return _folder(text)
    raise BackboneError(f"{text!r}: no timm network and no folder has this name{_near_names(text)}")


def _is_path(text: str) -> bool:
    return "/" in text or os.sep in text or text.startswith(("~", "local-dir:")) or text in (".", "..")


def _folder(text: str) -> Source:
    path = Path(text.removeprefix("local-dir:")).expanduser()
    if not path.is_dir():
        what = "this is a file" if path.exists() else "there is no such folder"
        raise BackboneError(
            f"{text}: {what}; expected a folder with config.json and model.safetensors, a run folder, or a timm name"
            + near(path.name, architectures())
        )
    if (path / "run.json").is_file():
        if not (path / "model").is_dir():
            raise BackboneError(
                f"{text}: this run holds no network (it has no model/ folder); expected a run that trained one"
            )
        return Source("run", text, folder=path / "model")
    return Source("folder", text, folder=path)


def architectures() -> list[str]:
    """Every design timm knows by name, without tags, ours among them."""
    from timm.models import list_models

    register_architectures()
    return list_models()


def _unknown_tag(text: str, architecture: str, tag: str) -> str:
    from timm.models import list_pretrained

    tags = [name.partition(".")[2] for name in list_pretrained(f"{architecture}.*")]
    tags += [name.partition(".")[2] for name in embedded.EMBEDDED if name.startswith(f"{architecture}.")]
    if not tags:
        return f"{text!r}: {architecture} has no published weights; use '{architecture}.random' for random weights"
    shown = ", ".join(tags[:8]) + (", ..." if len(tags) > 8 else "")
    return f"{text!r}: {architecture} has no weights {tag!r}; there are {shown}, or 'random'{near(tag, tags)}"


def _near_names(text: str) -> str:
    """Near names: tags only where the architecture is right, since a tag's letters drown the architecture's."""
    architecture, _, tag = text.partition(".")
    if f"legacy_{architecture}" in architectures():
        return f"; timm calls it 'legacy_{architecture}'"
    clause = near(architecture, architectures())
    if not clause:
        return "; `timm.list_models()` lists the names"
    return clause if not tag else clause[:-1] + f" (with .{tag} or another tag)?"
