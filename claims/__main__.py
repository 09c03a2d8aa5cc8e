"""``python -m claims SLUG`` measures one claim again; ``--all`` all of them; ``--tables`` writes the pages' tables."""

from __future__ import annotations

import sys
from importlib import import_module

from claims.table import EXTRA, refresh
from offshelf.errors import OffshelfError
from offshelf.methods import METHODS, get


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, f"\nMethods: {', '.join(METHODS)}; also: {', '.join(EXTRA)}")
        return 0 if arguments else 2
    try:
        named = [] if arguments[0] in ("--all", "--tables") else [_slug(word) for word in arguments]
        slugs = [*METHODS, *EXTRA] if arguments == ["--all"] else named
        for slug in slugs:
            path = import_module(f"claims.{slug.replace('-', '_')}").measure()
            print(f"{slug}: {path}")
        print("pages changed:", ", ".join(refresh()) or "none")
    except OffshelfError as error:
        print(f"claims: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _slug(word: str) -> str:
    return word if word in EXTRA else get(word).slug


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
