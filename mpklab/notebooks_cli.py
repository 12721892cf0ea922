"""`mpklab notebooks`: copies the notebooks to a folder of one's own, where they may be changed."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from mpklab import env
from mpklab.errors import EnvError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="made if it is not there")
    parser.add_argument("--force", action="store_true", help="write over files of the same names")


def main(args: argparse.Namespace) -> int:
    """Copy all or none: a notebook that is already there may hold somebody's work."""
    books = sorted(env.notebooks_folder().glob("*.ipynb"))
    there = [book.name for book in books if (args.folder / book.name).exists()]
    if there and not args.force:
        raise EnvError(
            f"{args.folder} already has {', '.join(there)}: name another folder, or --force to write over them"
        )
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        for book in books:
            shutil.copyfile(book, args.folder / book.name)
    except OSError as error:
        raise EnvError(f"cannot copy to {args.folder}: {error.strerror or error}") from error
    print("\n".join(str(args.folder / book.name) for book in books))
    print(f"\nopen them with: jupyter lab {args.folder}")
    return 0
