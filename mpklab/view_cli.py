"""`mpklab view`: a recording, or two beside each other, as one page that opens in a browser and needs nothing else."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from mpklab import analysis
from mpklab.console import human_bytes
from mpklab.errors import EnvError, ProfileError
from mpklab.profile import SUFFIX, open_profile
from mpklab.profile_cli import FILE_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE is a recording, by its path or its name."""
    parser.add_argument("files", metavar="FILE", nargs="+", help=FILE_HELP)
    parser.add_argument("--diff", action="store_true", help="two recordings: the second beside the first")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE.html", help="(default: FILE.html in this folder)")
    parser.add_argument("--no-open", action="store_true", help="write the page, and open no browser")


def main(args: argparse.Namespace) -> int:
    """Write the page, say where, open it."""
    wanted = 2 if args.diff else 1
    if len(args.files) != wanted:
        raise ProfileError(
            f"expected {wanted} recording{'s' if args.diff else ''}, found {len(args.files)}"
            f"{'' if args.diff else ': --diff shows two'}"
        )
    profiles = [open_profile(name) for name in args.files]
    from mpklab.widgets.studio import Studio

    stems = [Path(name).name.removesuffix(SUFFIX) for name in args.files]  # a recording's name may hold a dot
    title = " and ".join(stems)
    if args.diff:
        shown = Studio(profiles[0], other=profiles[1], title=title)
    else:
        cost = analysis.explain(profiles[0])["finding"][:1]
        shown = Studio(profiles[0], title=title, notes=[f"What cost most: {finding}" for finding in cost])
    page = args.output or Path("-".join(stems) + ".html")
    try:
        shown.to_html(page)
    except OSError as error:
        raise EnvError(f"cannot write {page}: {error.strerror or error}") from error
    print(f"wrote {page} ({human_bytes(page.stat().st_size)})")
    if not args.no_open and not webbrowser.open(page.absolute().as_uri()):
        print("no browser was found here: open the page by hand")
    return 0
