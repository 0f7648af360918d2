"""Names and texts of files never steer a terminal, turn its writing around, or become code."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import pytest
from hostile_modules import plain_net
from report_pages import IMAGES, full_report
from rich.console import Console

import fxquant
from fxquant.cli.console import PlainConsole, complain, line, print_summary, status
from fxquant.cli.log import log_to
from fxquant.cli.main import run
from fxquant.cli.tables import Column, Page
from fxquant.drawing.svg import draw
from fxquant.graph.prepare import prepare
from fxquant.report.html import render
from fxquant.report.layers import describe, list_layers
from fxquant.spec import QConfig
from fxquant.wording import shown, shown_lines

FORGED = "parity passed: forged"
STRINGS = {
    "colour": "\x1b[31mred",
    "clearing": "\x1b[2J\x1b[H",
    "a title": "\x1b]0;title\x07",
    "a link": "\x1b]8;;file:///etc/passwd\x1b\\click\x1b]8;;\x1b\\",
    "the clipboard": "\x1b]52;c;cm0gLXJm\x07",
    "a report of the cursor": "\x1b[6n",
    "a device control": "\x1bP$q\x1b\\",
    "sixel": "\x1bPq#0;2;0;0;0#0~~\x1b\\",
    "another set of characters": "\x1b(0lqqk",
    "8-bit control": "\x9b31mred\x9c",
    "8-bit title": "\x9d0;title\x9c",
    "a bell": "\x07",
    "backspaces": "good\x08\x08\x08\x08evil",
    "a line end": f"net\n{FORGED}",
    "a return": f"net\r{FORGED}",
    "both": f"net\r\n{FORGED}",
    "a vertical tab": f"net\x0b{FORGED}",
    "a form feed": f"net\x0c{FORGED}",
    "the next line": f"net\x85{FORGED}",
    "a line separator": f"net\u2028{FORGED}",
    "a paragraph separator": f"net\u2029{FORGED}",
    "a tab": "net\tpassed",
    "a zero": "net\0",
    "delete": "net\x7f",
    "right to left": "\u202etxt.exe",
    "left to right": "\u202dnet",
    "embedding": "\u202anet\u202c",
    "isolates": "\u2066net\u2069",
    "isolates to the left": "\u2067net\u2069",
    "marks of direction": "\u200enet\u200f",
    "an Arabic mark": "\u061cnet",
    "zero width": "ne\u200bt",
    "joiners": "ne\u200d\u200ct",
    "a soft hyphen": "ne\u00adt",
    "a byte order mark": "\ufeffnet",
    "a tag": "net\U000e0041",
    "an annotation": "\ufff9net\ufffa\ufffb",
    "private use": "net\ue000",
    "half a pair": "net\udc80",
    "no character": "net\uffff",
    "another space": "net\u3000\u00a0\u2003x",
    "markup": "[bold red]net[/] [link=file:///etc/passwd]click[/link]",
    "broken markup": "net [/nothing]",
    "an emoji code": "net :skull:",
    "HTML": "<script>alert(1)</script>",
    "an attribute": "\"><img src=x onerror=alert(1)>'",
    "an entity": "&lt;script&gt;",
    "a template": "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "a format": "{0.__class__} %s %n ${HOME} $(touch ran) `touch ran`",
    "a megabyte": "x" * 2**20,
}
# What may be on a terminal or a page: characters that show, and line ends.
STEERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def is_plain(text: str) -> bool:
    """Whether nothing in a text steers, hides or turns."""
    return all(char.isprintable() or char == "\n" for char in text) and not STEERS.search(text)


def lines_begin(text: str, start: str) -> bool:
    return any(row.startswith(start) for row in text.splitlines())


@pytest.mark.parametrize("name", STRINGS)
def test_text_is_one_line_that_shows(name):
    found = shown(STRINGS[name], 100)
    assert found.isprintable()
    assert len(found) < 1100
    assert shown("größe 画像 v2.0") == "größe 画像 v2.0"


@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("say", [line, status, lambda text: complain("error", text)])
def test_what_is_said(say, name, capsys):
    say(f"net {STRINGS[name]}")
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert is_plain(said)
    assert not lines_begin(said, FORGED)


def printed(*values: object, **options) -> str:
    file = io.StringIO()
    PlainConsole(file=file, width=100, **options).print(*values)
    return file.getvalue()


@pytest.mark.parametrize("name", STRINGS)
def test_the_console_takes_no_markup(name):
    text = STRINGS[name][:5000]
    found = printed(text)
    assert is_plain(found)
    joined = "".join(found.split())
    assert joined == "".join(shown(text).split())
    assert "\x1b" not in printed(text, force_terminal=True, color_system="truecolor")


@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("terminal", [False, True])
def test_tables_and_pages(terminal, name, capsys, monkeypatch):
    text, file = STRINGS[name][:5000], io.StringIO()
    page = Page()
    if terminal:
        page.is_terminal, page._console = True, PlainConsole(file=file, width=60)
    page.title(text)
    page.text(f"net {text}", indent=2)
    page.names([text, "b"])
    page.table([Column(text, fold=True), Column("x")], [[text, text]])
    said = capsys.readouterr().out + file.getvalue()
    assert is_plain(said)
    assert not lines_begin(said, FORGED) or terminal


def test_the_page_of_a_report():
    """One page with all of them, each where a name, a reason, a note and a setting stand."""
    texts = [text[:5000] for text in STRINGS.values()]
    report, plain = full_report(), render(full_report(), IMAGES)
    rows = len(report["layers"])
    report["layers"] += [{**report["layers"][0], "name": t, "kind": t} for t in texts]
    report["float"] += [{"name": t, "what": t, "reason": t} for t in texts]
    report["notes"] = texts
    report["machine"] |= {f"{i}{t[:99]}": t for i, t in enumerate(texts)}
    for text in (STRINGS["HTML"], STRINGS["an attribute"], STRINGS["a title"] + STRINGS["both"]):
        report["model"] |= {"name": text, "source": text}
        report["settings"]["recipe"]["name"] = report["parity"]["diverges_at"] = text
        page = render(report, IMAGES)
        assert is_plain(page)
        assert page.count("<script") == 0
        assert page.count("<img") == plain.count("<img")
        assert page.count("{{ 7 * 7 }}") >= 4
        assert page.count("<tr") >= rows + 2 * len(texts)


@pytest.mark.parametrize("name", STRINGS)
def test_the_drawing_of_a_network(name):
    prepared = prepare(plain_net(), QConfig(4, 4), (3, 8, 8))
    layers = list_layers(prepared)
    facts = describe(prepared, layers)
    facts["model"] |= {"name": STRINGS[name][:5000]}
    facts |= {"fxquant": "0", "settings": {"config": QConfig(4, 4).to_dict()}}
    picture = draw(prepared, layers, facts)
    assert is_plain(picture)
    assert "<script" not in picture


@pytest.mark.parametrize("name", STRINGS)
def test_the_log_of_a_run(name, tmp_path):
    with log_to(tmp_path / "run.log"):
        logging.getLogger("fxquant.test").warning("net %s", STRINGS[name])
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert is_plain(text)
    assert not lines_begin(text, FORGED)
    assert len(text) < 10_000


def test_an_error_of_a_megabyte_is_cut(capsys):
    complain("error", "x" * 2**20)
    assert len(capsys.readouterr().err) < 5000
    assert shown_lines("a\nb") == "a\n  b"


@pytest.mark.parametrize("name", [name for name in STRINGS if name != "a megabyte"])
def test_a_command_line_with_such_a_name(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = STRINGS[name].replace("\0", "0")
    for arguments in (["bench", f"-{text}"], ["bench", text], ["verify", text, "--against", text]):
        assert run(arguments) == 2
        said = capsys.readouterr().err
        assert is_plain(said)
        assert not lines_begin(said, FORGED)


def test_a_summary_of_odd_names(capsys):
    report = full_report()
    text = f"{'x' * 200}\r\n\x1b[2J {FORGED}"
    report["model"]["name"] = report["float"][0]["reason"] = text
    report["settings"]["recipe"]["name"] = text
    print_summary(report, Path(f"a\n{FORGED}"))
    said = capsys.readouterr().out
    assert is_plain(said)
    assert not lines_begin(said, FORGED)


# Ways around the console.
AROUND = re.compile(r"\bclick\.echo\(|(?<!Plain)\bConsole\(|^\s*print\(|from_markup", re.M)


def test_nothing_else_writes_to_the_terminal():
    root = Path(fxquant.__file__).parents[1]
    allowed = {"console.py", "main.py", "memory.py"}  # the last prints a number to its parent
    places = [p for part in ("cli", "exporters", "fxquant") for p in (root / part).rglob("*.py")]
    assert len(places) > 100
    around = {path.name for path in places if AROUND.search(path.read_text(encoding="utf-8"))}
    assert around == allowed


def test_a_report_in_json_is_ascii(capsys):
    from fxquant.cli.console import print_json

    print_json({"name": "".join(STRINGS[name][:100] for name in STRINGS)})
    text = capsys.readouterr().out
    assert text.isascii()
    assert is_plain(text)
    assert isinstance(json.loads(text), dict)
    assert isinstance(PlainConsole(), Console)
