"""The `fxquant` command: its subcommands, and what becomes of errors and interruptions."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import click

from fxquant import __version__
from fxquant.cli.inspect import inspect
from fxquant.cli.quantize import quantize
from fxquant.errors import FxQuantError

EXIT_USAGE, EXIT_INTERRUPTED = 2, 3


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 2 something you gave can't be used, 3 interrupted, "
    "4 the exported file doesn't compute what the student does.",
)
@click.version_option(__version__, prog_name="fxquant")
def fxquant() -> None:
    """Make a trained network small without its training data.

    From a PyTorch model to a low-bit ONNX file that ONNX Runtime runs on integer kernels.
    """


fxquant.add_command(quantize)
fxquant.add_command(inspect)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit code. Errors go to stderr as `error:` and `hint:`."""
    try:
        code = fxquant.main(arguments, prog_name="fxquant", standalone_mode=False)
    except FxQuantError as error:
        _say("error", error.message)
        if error.hint:
            _say("hint", error.hint)
        return error.exit_code
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        _say("error", error.format_message())
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        _say(
            "interrupted",
            "run the same command again: a quantize run continues from its last checkpoint",
        )
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0


def _say(label: str, text: str) -> None:
    styled = click.style(f"{label}:", fg="red" if label == "error" else "yellow", bold=True)
    click.echo(f"{styled} {text}", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
