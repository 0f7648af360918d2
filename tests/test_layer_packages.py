"""The classes that model files may name: none of them runs code, reads files, or downloads."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from model_files import error_of, write_pickle

from fxquant.models.layers import LAYER_PACKAGES, may_be_a_layer
from fxquant.models.records import Global

# Calls by these names, in a method or in the body of a class, make a class unfit for the list.
ACTS = {
    *("exec", "compile", "open", "__import__", "import_module", "system", "Popen", "run_path"),
    *("load_state_dict_from_url", "load_state_dict_from_hf", "load_url", "hf_hub_download"),
    *("urlopen", "urlretrieve", "download_url", "symbolic_trace", "create_feature_extractor"),
    *("GraphModule", "to_folder", "fromfile", "loadtxt", "memmap", "PackageImporter"),
}
EVALUATES = {"eval", "load", "script", "trace"}  # methods, too: only as functions, or of torch.jit
# A function inside load_state_dict, and what torch.nn.Module.compile does when somebody calls it.
KNOWN = {("torch.nn.modules.module", "Module", act) for act in ("load", "compile")}
BASES = ("GraphModule", "ScriptModule", "Tracer", "Interpreter", "LazyModuleMixin")


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Each module that classes may be of, by name, parsed and not imported."""
    for package in LAYER_PACKAGES:
        folder = Path(find_spec(package.strip(".")).origin).parent
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = package + ".".join(part for part in parts if part != "__init__")
            yield name.strip("."), ast.parse(path.read_text(encoding="utf-8"))


def acts_of(kind: ast.ClassDef) -> Iterator[str]:
    for base in kind.bases:
        if ast.unparse(base).rpartition(".")[2] in BASES:
            yield ast.unparse(base)
    for call in (node for node in ast.walk(kind) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        last = name.rpartition(".")[2]
        if last in ACTS or name in EVALUATES or name in {f"torch.jit.{n}" for n in EVALUATES}:
            yield last


def test_no_class_on_the_list_makes_or_runs_code():
    found, listed = [], 0
    for module, tree in sources():
        for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            if not may_be_a_layer(Global(module, kind.name)):
                continue
            listed += 1
            found += [(module, kind.name, act) for act in acts_of(kind)]
    # the rule about bases is applied to the classes themselves, once they are imported
    lazy = {entry for entry in found if entry[2].endswith("LazyModuleMixin")}
    assert set(found) - lazy == KNOWN
    assert all(name.startswith(("Lazy", "_Lazy")) for _module, name, _act in lazy)
    assert listed > 2000


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("timm.models._features_fx", "FeatureGraphNet"),
        ("timm.models._hub", "load_state_dict_from_hf"),
        ("torchvision.models.feature_extraction", "DualGraphModule"),
        ("torchvision.models.quantization.resnet", "QuantizableResNet"),
        ("torch.nn.modules.linear", "LazyLinear"),
        ("torch.nn.modules.linear", "F"),
        ("torch.nn.modules.container", "torch"),
        ("torch.nn.parallel.distributed", "DistributedDataParallel"),
        ("pytorchcv.models.raft_stream", "RAFTSequencer"),
        ("torchvision.models.resnet", "os.system"),
        ("torchvision.models..resnet", "ResNet"),
        ("torchvision.models.resnet", "__loader__"),
    ],
)
def test_what_is_no_layer_is_refused(tmp_path, module, name):
    write_pickle(tmp_path, f"c{module}\n{name}\n)\x81}}b.".encode("latin1"))
    error = error_of(tmp_path / "evil.pt")
    assert "not trusted" in error.message
    assert f"{module}.{name}" in error.message
