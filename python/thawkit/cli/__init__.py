"""The ``thawkit`` command line: one module a command, imported without torch so that help is instant.

A command module has ``HELP`` (one line), ``add_arguments(parser)`` and ``run(args) -> int`` (exit status).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from thawkit import __version__
from thawkit.errors import ThawkitError

COMMANDS = ("demo", "train", "adapt", "export", "verify", "drift", "freeze-report", "doctor")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not ``None`` or that a flag is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        off = action.default is None or action.default is False
        return action.help if off else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, without the twenty of the usage."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="thawkit",
        description="From a pretrained model and a little data of your own to a small device.",
        epilog="thawkit COMMAND --help explains one command. Start with: thawkit demo",
    )
    parser.add_argument("--version", action="version", version=f"thawkit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"thawkit.cli.{name.replace('-', '_')}")
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=_HelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except ThawkitError as error:
        if os.environ.get("THAWKIT_TRACEBACK"):
            raise
        print(f"thawkit {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"thawkit {args.command}: interrupted", file=sys.stderr)
        return 130
