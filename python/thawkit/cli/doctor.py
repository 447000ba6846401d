"""(being written)"""

import argparse

HELP = "(being written)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    raise SystemExit("being written")
