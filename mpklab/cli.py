"""The program `mpklab`: every job by hand, one subcommand each.

A subcommand is a module with `add_arguments(parser)` and `main(args) -> int`; those under `bench` are found by looking
into their folder. Only the module that was asked for is imported, so that `mpklab --help` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mpklab.errors import MpkError, suggest

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

# Folders of subcommands: `mpklab bench cpu` is mpklab/bench/cpu.py. Another group is another line here.
GROUPS = {"bench": "time something and print a table"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error that mpklab raises on purpose is one message on stderr and exit code 1."""
    try:
        args = parse(list(sys.argv[1:] if argv is None else argv))
        run: Callable[[argparse.Namespace], int] = args.run
        return run(args)
    except MpkError as error:
        print(f"mpklab: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "mpklab"):
            raise
        print(f"mpklab: this needs the Python package {package}: `pip install {package}`", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `mpklab … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class Parser(argparse.ArgumentParser):
    """argparse that takes no abbreviations and answers a slip with what was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown options first: `--promt x` is a slip, not a missing `--prompt`."""
        known = [name for action in self._actions for name in action.option_strings]
        for word in args or ():
            if self._subparsers is not None and not word.startswith("-"):
                break  # what follows belongs to a subcommand
            name = word.split("=")[0]
            if name.startswith("--") and name not in ("--", *known):
                self.error(f"unknown option {name!r}; {suggest(name, known)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        slip = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if slip:
            known = [name.strip(" '\"") for name in slip[2].split(",")]
            message = f"{message[: slip.start()]}unknown: {slip[1]!r}; {suggest(slip[1], known)}"
        print(f"{self.prog}: {message}\n{self.format_usage().rstrip()}", file=sys.stderr)
        sys.exit(2)


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command that was asked for; `args.run(args)` runs it."""
    parser = Parser(prog="mpklab", description="Megakernels from a model's graph to what every worker did.")
    parser.set_defaults(run=_help_of(parser))
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(metavar="command", parser_class=Parser)
    for name, text, module in (
        ("demo", "compile SmolLM2-135M, let it answer a question, leave pictures", "mpklab.demo"),
        ("chat", "talk with a model through one persistent kernel", "mpklab.chat"),
        ("doctor", "say what is there, what is missing, and what would bring it", "mpklab.doctor"),
        ("profile", "look into a recording", "mpklab.profile_cli"),
        ("view", "a recording as a page: timeline, tasks, operators and source, linked", "mpklab.view_cli"),
        ("rerun", "run what a recording ran once more, and say what differs", "mpklab.rerun_cli"),
        ("notebooks", "copy the notebooks to a folder of your own", "mpklab.notebooks_cli"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        if argv[:1] == [name]:
            _attach(command, module)
    _add_generate(commands.add_parser("generate", help="run a model on a prompt through one persistent kernel"))
    _add_cache(commands.add_parser("cache", help="the folder of compiled kernels and unpacked weights"))
    for group, text in GROUPS.items():
        _add_group(commands.add_parser(group, help=text, description=text), group, argv)
    args = parser.parse_args(argv)
    if args.version:
        args.run = _print_version
    return args


def _attach(parser: argparse.ArgumentParser, module: str) -> None:
    program = importlib.import_module(module)
    program.add_arguments(parser)
    parser.set_defaults(run=program.main)


def _add_group(parser: argparse.ArgumentParser, group: str, argv: list[str]) -> None:
    """One subcommand per module of a folder, described by the first line of its docstring."""
    parser.set_defaults(run=_help_of(parser))
    if argv[:1] != [group]:
        return
    programs = _programs_in(f"mpklab.{group}")
    commands = parser.add_subparsers(metavar="name", parser_class=Parser)
    for name, about in programs.items():
        text = about.replace("%", "%%")
        command = commands.add_parser(name, help=text, description=text)
        if argv[1:2] == [name]:
            _attach(command, f"mpklab.{group}.{name}")


def _programs_in(package: str) -> dict[str, str]:
    """Modules of a folder that are subcommands, and what each says it is for; read, not imported."""
    spec = importlib.util.find_spec(package)
    found = {}
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("[!_]*.py")):
            tree = ast.parse(file.read_text("utf-8"))
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            if {"add_arguments", "main"} <= functions:
                found[file.stem] = (ast.get_docstring(tree) or file.stem).splitlines()[0]
    return found


def _help_of(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """What a command does when it is given nothing to do."""

    def run(_: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    return run


def _print_version(_: argparse.Namespace) -> int:
    import mpklab

    print(f"mpklab {mpklab.__version__}")
    return 0


def _add_generate(parser: argparse.ArgumentParser) -> None:
    from mpklab.chat import add_sampling

    add = parser.add_argument
    add("--model", default="smollm2-135m", help="a name, a GGUF file or a folder (default: %(default)s)")
    add("--prompt", required=True, help="the text; - reads it from standard input")
    add("--raw", action="store_true", help="the prompt as it is, without the model's chat template")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="(default: %(default)s)")
    add("--max-new-tokens", type=_count, default=64, metavar="N", help="at most so many (default: %(default)s)")
    add("--mode", default="static", help="who hands out tasks: static, dynamic or hybrid (default: %(default)s)")
    add(
        "--policy",
        metavar="NAME",
        help="of queues (default locality), or of a dynamic pool: central (default), per_worker",
    )
    add(
        "--dynamic",
        metavar="OPS",
        help="with --mode hybrid: operators to hand out at run time, by name or kind, with commas",
    )
    add("--early-push", action="store_true", help="hand a task out when all it waits for have been taken, not ended")
    add("--workers", type=_count, metavar="N", help="CPU threads (default: the physical cores this process may use)")
    add("--profile", type=Path, metavar="FILE", help="record the run into this .mpkprof file")
    add("--level", type=int, choices=(1, 2, 3), default=2, help="how much to record (default: %(default)s)")
    add("--json", action="store_true", help="print tokens, text and seconds as JSON")
    add_sampling(parser)
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    import mpklab as mk
    from mpklab.chat import sampling_of
    from mpklab.run import Sampling

    rules = sampling_of(args)
    sampling = None if Sampling(**rules).plain else True
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    machine = None if args.workers is None else mk.Machine.cpu(workers=args.workers)
    quiet = {"report": lambda *_: None} if args.json else {}
    handout = {"dynamic": tuple(args.dynamic.split(",")) if args.dynamic else (), "early_push": args.early_push}
    choice = {"mode": args.mode, "policy": args.policy, "handout": {k: v for k, v in handout.items() if v}}
    kernel = mk.compile(args.model, machine=machine, dtype=args.dtype, sampling=sampling, **choice, **quiet)
    answer = kernel.generate(
        prompt,
        max_new_tokens=args.max_new_tokens,
        raw=args.raw,
        profile=args.level if args.profile else 0,
        on_token=None if args.json else lambda _, piece: print(piece, end="", flush=True),
        **rules,
    )
    if args.json:
        print(json.dumps({"tokens": list(answer.tokens), "text": answer.text, "seconds": answer.seconds}))
    else:
        print()
    if args.profile and answer.profile:
        answer.profile.save(args.profile)
    if not args.json:
        rate = f"{len(answer.tokens)} tokens in {answer.seconds:.2f} s, {answer.tokens_per_second:.1f} a second"
        print(f"[{rate}{f'; recorded in {args.profile}' if args.profile else ''}]", file=sys.stderr)
    return 0


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("info", "clear"), nargs="?", default="info", help="(default: info)")
    parser.set_defaults(run=_cache)


def _cache(args: argparse.Namespace) -> int:
    from mpklab import env
    from mpklab.console import human_bytes, print_table

    folder = env.cache_folder()
    sizes = {child: _bytes_in(child) for child in sorted(folder.iterdir())} if folder.is_dir() else {}
    if args.action == "clear":
        env.private_folder(folder)  # refuses a folder that is not the user's own
        for child in sizes:
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        print(f"removed {human_bytes(sum(sizes.values()))} from {folder}")
        return 0
    limit = human_bytes(env.cache_limit_bytes())
    print(f"{folder}: {human_bytes(sum(sizes.values()))} of at most {limit}")
    if sizes:
        counts = {child: len(list(child.iterdir())) if child.is_dir() else 1 for child in sizes}
        print_table(
            ("what", "entries", "size"), [(child.name, counts[child], human_bytes(sizes[child])) for child in sizes]
        )
    return 0


def _bytes_in(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number of at least 1, not {text!r}")
    return number
