"""Command line: ``paddlelite-callbacks <command>``.

Also ``python -m paddlelite_callbacks``.

A command is a module with ``add_arguments(parser)`` and ``run(options) -> int``, listed in `COMMANDS`. It is imported
only when called, so that ``--help`` needs neither Paddle nor anything else.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from paddlelite_callbacks._version import __version__
from paddlelite_callbacks.cli.output import program_name
from paddlelite_callbacks.errors import require
from paddlelite_callbacks.utils.terminal import degrading

__all__ = ["COMMANDS", "Command", "command", "main"]

_EXIT_CODES = (
    "exit codes: 0 done; 1 failed (one line says why); 2 unknown arguments; 3 done, but a budget is exceeded; "
    "130 interrupted"
)
_PATHS = (
    "model",
    "out",
    "folder",
    "record",
    "images",
    "data",
    "teacher_weights",
    "before",
    "after",
    "html",
)  # arguments that are files or folders


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Args:
        module: Dotted name inside this package.
        summary: One line for ``--help``.
    """

    module: str
    summary: str

    def load(self) -> ModuleType:
        """Import the module."""
        return importlib.import_module(f"paddlelite_callbacks.{self.module}")


COMMANDS = {
    "lighten": Command("cli.lighten", "from a folder of pictures to the best light classifier that keeps a budget"),
    "quantize": Command(
        "cli.quantize", "write a Paddle program or ONNX file in int8, without training, checked and timed"
    ),
    "bench": Command("cli.bench", "check and time a Paddle program or ONNX file on every CPU engine"),
    "export": Command("cli.export", "write a Paddle program as ONNX, checked"),
    "gate": Command("cli.gate", "hold recorded runs against a budget; exit code 3 if none keeps it"),
    "report": Command("cli.report", "draw the report of a folder of runs"),
    "compare": Command("cli.compare", "compare two folders of runs: metric, size, latency, gate, options"),
    "doctor": Command("cli.doctor", "check the installation and this machine; exit code 1 if something is broken"),
    "backbones": Command("cli.backbones", "list the backbones that BackboneSwap can put in, with measured figures"),
}


def _in_utf8() -> None:
    """Restart this process in Python's UTF-8 mode where the locale is ASCII.

    Otherwise Paddle, ONNX Runtime and OpenVINO cannot open other paths. Output is still encoded for the locale.
    """
    if os.name != "posix" or sys.flags.utf8_mode or not sys.executable:
        return
    if sys.getfilesystemencoding().lower().replace("-", "") == "utf8":
        return
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    environment = {"PYTHONIOENCODING": encoding, **os.environ}
    os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)


def _parser(wanted: str | None, *, whole: bool = False) -> argparse.ArgumentParser:
    """Build the parser, with the arguments of ``wanted`` only unless ``whole``."""
    parser = argparse.ArgumentParser(
        prog=program_name(),
        description="Make a vision model small and fast, and prove it.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh"),
        help="write a completion script for this shell, then end: source it, or put it where the shell looks",
    )
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.summary, description=command.summary, epilog=_EXIT_CODES)
        if whole or name == wanted:
            command.load().add_arguments(sub)
    return parser


def _completion(shell: str) -> str:
    """Return a script that completes commands and arguments without starting Python."""
    shtab = require("shtab", needed_for="--print-completion")
    parser = _parser(None, whole=True)
    parser.prog = "paddlelite-callbacks"
    commands = next(action for action in parser._actions if action.dest == "command")
    for sub in commands.choices.values():  # type: ignore[union-attr]
        sub.prog = sub.prog.replace(program_name(), parser.prog)
        for action in sub._actions:
            if action.dest in _PATHS:
                action.complete = shtab.FILE
    return str(shtab.complete(parser, shell=shell))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Arguments without the program's name; ``None`` for those of the process.

    Returns:
        0; 1 if it failed, with the reason on one line of stderr; 3 if a budget is exceeded; 130 after Ctrl-C.
        ``argparse`` itself exits with 2 for unknown arguments.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(next((item for item in given if not item.startswith("-")), None))
    options = parser.parse_args(given)
    if options.print_completion is None and options.command is None:
        parser.error(f"the following arguments are required: command, one of {', '.join(COMMANDS)}")
    try:
        with warnings.catch_warnings(), degrading(sys.stdout):
            warnings.simplefilter("ignore")
            if options.print_completion is not None:
                sys.stdout.write(_completion(options.print_completion))
                return 0
            return int(COMMANDS[options.command].load().run(options))
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog} {options.command}: interrupted\n")
        return 130
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):  # "... | head"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        sys.stderr.write(f"{parser.prog} {options.command or '--print-completion'}: {error}\n")
        return 1


def command() -> int:
    """Run as an installed command."""
    _in_utf8()
    return main()


if __name__ == "__main__":
    raise SystemExit(command())
