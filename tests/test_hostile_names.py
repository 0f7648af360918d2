"""Names of modules and tensors that torch.fx would write into source."""

from __future__ import annotations

import pytest
import torch
from test_hostile_strings import STRINGS, is_plain
from torch import nn

from fxquant.errors import TraceError
from fxquant.graph.names import NameRefusedError, require_plain_name
from fxquant.graph.prepare import prepare
from fxquant.spec import QConfig

CODE = 'training") or open("ran", "w") or str("'
NAMES = {
    **{
        f"{key} in a name": f"a{text[:50]}b" for key, text in STRINGS.items() if key != "a megabyte"
    },
    "code": CODE,
    "a call": "a()",
    "a quote": 'a"b',
    "an apostrophe": "a'b",
    "a backslash": "a\\b",
    "a bracket": "a[0]",
    "a space": "a b",
    "nothing": "",
    "a dot": ".",
    "two dots": "a..b",
    "a comment": "a#b",
    "a semicolon": "a;b",
    "a keyword": "a.for.b",
    "a name of torch.fx": "graph",
    "another name of torch.fx": "code",
    "a method": "a.forward",
}


@pytest.mark.parametrize("kind", ["call_module", "get_attr", "placeholder"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_path_is_refused(name, kind):
    if kind == "placeholder" and name in ("a name of torch.fx", "another name of torch.fx"):
        return  # arguments may be called so
    with pytest.raises(NameRefusedError, match="can't be traced") as caught:
        require_plain_name(kind, NAMES[name])
    assert is_plain(caught.value.message)


@pytest.mark.parametrize("name", ["0", "layer1.0.conv", "a-b", "größe.1x1", "_x", "features.norm0"])
def test_paths_of_identifiers_are_taken(name):
    require_plain_name("call_module", name)
    require_plain_name("get_attr", name)


@pytest.mark.parametrize("method", ["view", "to"])
def test_methods_are_identifiers(method):
    require_plain_name("call_method", method)
    with pytest.raises(NameRefusedError):
        require_plain_name("call_method", f"{method}(1) or open")


class Named(nn.Module):
    """A network with a module, or a tensor that is neither parameter nor buffer, of that name."""

    def __init__(self, name: str, tensor: bool):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.name = name
        if tensor:
            self.__dict__[name] = torch.ones(4, 1, 1)
        else:
            self._modules[name] = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x, inner = self.conv(x), self.__dict__.get(self.name)
        return self._modules[self.name](x) if inner is None else x * inner


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("name", [CODE, "graph", "for", "a'b", "\x1b[2J"])
def test_the_recorder_refuses_such_names(name, tensor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TraceError, match="can't be traced") as caught:
        prepare(Named(name, tensor), QConfig(4, 4), (3, 8, 8))
    assert is_plain(caught.value.message)
    assert list(tmp_path.iterdir()) == []
