"""The house keeps its shape: imports point down, the lists match the folders, the surface is what is written."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import offshelf
from offshelf.methods import METHODS, get

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "src" / "offshelf"
# From the top floor to the ground; a file imports only from its own floor or from floors after it.
FLOORS = [
    *("cli", "jobs", "report", "serve", "evaluate", "interpret"),
    *("transfer", "generate", "pretrain", "backbones", "data", "engine"),
]
ANYONE = {"errors", "methods"}


def imports(path: Path) -> list[str]:
    """Modules of ours that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "offshelf":
                found += [f"offshelf.{name.name}" for name in node.names]
            elif node.module and node.module.startswith("offshelf."):
                found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] == "offshelf"]
    return found


def test_imports_point_down() -> None:
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for target in imports(path):
            other = target.split(".")[1] if "." in target else ""
            checked += 1
            assert other, f"{path} imports the package root"
            if other in ANYONE:
                continue
            assert room not in ANYONE, f"{path}: {room}.py imports {target}, but must import nothing of ours"
            if room in FLOORS:
                assert FLOORS.index(other) >= FLOORS.index(room), f"{path}: {room} imports upwards from {target}"
    assert checked > 50


def test_verbs_and_engine_import_nothing_heavy_at_the_top() -> None:
    heavy = {"torch", "sklearn", "datasets", "timm", "pandas", "matplotlib", "skops", "ray"}
    torch_itself = {"collective.py"}  # functions with gradients and layers; loaded by what trains
    engine = [path for path in (PACKAGE / "engine").glob("*.py") if path.name not in torch_itself]
    light = [*(PACKAGE / "jobs").glob("*.py"), *engine]
    for path in [*light, PACKAGE / "cli.py", PACKAGE / "methods.py"]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            plain = isinstance(node, ast.Import)
            names = [n.name for n in node.names] if plain else [getattr(node, "module", "") or ""]
            assert not heavy & {name.split(".")[0] for name in names}, f"{path} imports {names} at the top"


def test_importing_the_package_and_asking_for_help_stay_light() -> None:
    heavy = "{'torch', 'sklearn', 'datasets'} & set(sys.modules)"
    code = f"import sys, offshelf; from offshelf.cli import app; assert not {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_sorted() -> None:
    assert offshelf.__all__ == sorted(offshelf.__all__)
    for name in offshelf.__all__:
        assert getattr(offshelf, name).__name__ == name


@pytest.mark.parametrize("slug", METHODS)
def test_every_listed_method_has_its_parts(slug: str) -> None:
    method = get(slug)
    assert method.slug == slug
    assert (method.load().__doc__ or "").strip()
    for part in (
        PROJECT / "claims" / f"{slug.replace('-', '_')}.py",
        PROJECT / "claims" / "results" / f"{slug}.json",
        PROJECT / "docs" / "methods" / f"{slug}.md",
        PACKAGE / method.part / f"{slug.replace('-', '_')}.py",
    ):
        assert part.is_file(), f"{slug}: {part.relative_to(PROJECT)} is missing"


def test_the_list_of_methods_matches_the_folders() -> None:
    stems = {p.stem for p in (PROJECT / "claims").glob("[!_]*.py")} - SHARED_CLAIM_FILES
    claims = {stem.replace("_", "-") for stem in stems}
    pages = {p.stem for p in (PROJECT / "docs" / "methods").glob("*.md") if p.stem != "index"}
    assert claims == set(METHODS) == pages


SHARED_CLAIM_FILES = {
    *("cifar", "common", "table", "embedded_networks", "imagenet_drop"),
    *("eight_sets", "winners", "winners_told"),
}
