"""What all tests share."""

from __future__ import annotations

import gc
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from fast_exports import remember_translations
from model_files import small_net
from slow import SLOW, is_slow

# On networks this small more threads cost more than they give, and sums come out the same each run.
torch.set_num_threads(1)
remember_translations()


def pytest_collection_modifyitems(items) -> None:
    """Mark the slow tests, and begin with the files that are slow: short ones fill what is left."""
    items.sort(key=lambda item: item.path.name not in SLOW)
    for item in items:
        if is_slow(item.path.name, getattr(item, "originalname", item.name)):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over all that is imported: a tenth of an export's time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape what is no character in a test's output: processes can't tell it each other."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode("utf-8"))
        for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real networks and test images, kept beside the repository, not in it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real networks in {folder}")
    return folder


@pytest.fixture
def net_file(tmp_path):
    """A network and the file that it is pickled in."""
    net = small_net()
    torch.save(net, tmp_path / "net.pt")
    return net, tmp_path / "net.pt"


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Writes a module of the user's into the working directory; its import leaves a mark."""
    monkeypatch.chdir(tmp_path)
    written = []

    def write(name: str, body: str) -> None:
        mark = f"import pathlib\npathlib.Path({str(tmp_path / f'{name}.imported')!r}).touch()\n"
        (tmp_path / f"{name}.py").write_text(mark + textwrap.dedent(body))
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def figures(capsys):
    """Prints what a soak test counted, as it happens: `figures(what, {name: number})`."""

    def show(what: str, numbers: dict) -> None:
        with capsys.disabled():
            print(f"\n{what}: " + "; ".join(f"{name} {n}" for name, n in numbers.items()))

    return show
