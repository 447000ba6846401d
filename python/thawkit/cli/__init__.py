"""The ``thawkit`` command line: one module a command, imported without torch so that help is instant.

A command module has ``HELP`` (one line), ``add_arguments(parser)`` and ``run(args) -> int`` (exit status).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from thawkit import __version__
from thawkit.errors import ThawkitError

COMMANDS = ("demo", "train", "adapt", "export", "verify", "doctor")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not ``None``."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thawkit",
        description="From a pretrained model and a little data of your own to a small device.",
        epilog="thawkit COMMAND --help explains one command. Start with: thawkit demo",
    )
    parser.add_argument("--version", action="version", version=f"thawkit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"thawkit.cli.{name}")
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
