"""The `fxquant` command: its subcommands, and what becomes of errors and interruptions."""

from __future__ import annotations

import io
import os
import sys

import click

from fxquant import __version__
from fxquant.cli.bench import bench
from fxquant.cli.export import export
from fxquant.cli.importance import importance
from fxquant.cli.inspect import inspect
from fxquant.cli.interrupts import interrupts
from fxquant.cli.quantize import quantize
from fxquant.cli.streams import make_streams_sturdy, open_missing_streams
from fxquant.cli.verify import verify
from fxquant.errors import FxQuantError
from fxquant.wording import LONGEST, shown

EXIT_USAGE, EXIT_INTERRUPTED = 2, 3


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 2 something you gave can't be used, 3 interrupted, "
    "4 the exported file doesn't compute what the student does, 5 training diverged.",
)
@click.version_option(__version__, prog_name="fxquant")
def fxquant() -> None:
    """Make a trained network small without its training data.

    From a PyTorch model to a low-bit ONNX file that ONNX Runtime runs on integer kernels.
    """


for command in (quantize, inspect, importance, export, verify, bench):
    fxquant.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    open_missing_streams()
    make_streams_sturdy()
    interrupts.install()
    code = run(arguments)
    sys.stdout.flush()
    if sys.stdout.lost:
        _say("error", f"the results can't be printed: {sys.stdout.lost}")
        code = code or EXIT_USAGE
    sys.exit(code)


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
        _show_usage(error)
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
    except Exception as error:
        if not _memory_ran_out(error):
            raise
        _say("error", f"memory ran out: {str(error).partition(chr(10))[0] or 'no more to be had'}")
        _say("hint", "a smaller --input-shape, or smaller numbers in recipe.toml, need less")
        return EXIT_USAGE
    return code if isinstance(code, int) else 0


def _memory_ran_out(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from fxquant.memory import is_out_of_memory

    return is_out_of_memory(error)


def _say(label: str, text: object) -> None:
    if os.environ.get("TORCHELASTIC_RUN_ID") and os.environ.get("RANK", "0") != "0":
        return  # torchrun started several, and the first says it
    from fxquant.cli.console import complain

    complain(label, text)


def _show_usage(error: click.UsageError) -> None:
    """What click says of a command line, which may hold the name of a file."""
    usage = io.StringIO()
    error.show(usage)
    for row in usage.getvalue().splitlines():
        click.echo(shown(row, LONGEST), err=True)
