"""The command line. Torch is imported by the commands that need it, not by `--help`."""

from fxquant.cli.main import main

__all__ = ["main"]
