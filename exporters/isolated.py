"""Programs of this package as processes of their own, into which nothing gets that lies about.

A process that is started with -m, or without -I, imports `json.py` or `numpy.py` of the working
directory, and whatever PYTHONPATH and the other variables of Python name.
"""

from __future__ import annotations

import os
import site
import sys

_START = (
    "import runpy, site, sys; user, module, *sys.argv[1:] = sys.argv[1:]; "
    "user and site.addsitedir(user); runpy.run_module(module, run_name='__main__')"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this package with what is installed, and no more."""
    user = site.getusersitepackages() if site.ENABLE_USER_SITE else ""
    return [sys.executable, "-I", "-c", _START, user, module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment without what Python itself would follow."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
