"""Data-free quantization of trained PyTorch networks, down to integer ONNX files.

    import fxquant

    result = fxquant.quantize(model, bits=4, input_shape=(3, 32, 32))
    fxquant.export(result, "out")

Names are loaded when they are first used, so that importing the package does not import torch.
"""

from importlib import import_module

_PUBLIC = {
    "FxQuantError": "fxquant.errors",
    "LayerRule": "fxquant.spec",
    "Mixed": "fxquant.mixed.budget",
    "QConfig": "fxquant.spec",
    "Quantizer": "fxquant.quantizer",
    "Recipe": "fxquant.datafree.recipe",
    "Settings": "fxquant.settings",
    "Watcher": "fxquant.datafree.watcher",
    "Watchers": "fxquant.datafree.watcher",
    "calibrate": "fxquant.calibration",
    "export": "fxquant.exporters.artifacts",
    "export_onnx": "fxquant.exporters.onnx_qdq",
    "find_recipe": "fxquant.datafree.recipes",
    "layer_importance": "fxquant.importance",
    "load_model": "fxquant.models.load",
    "prepare": "fxquant.graph.prepare",
    "quantize": "fxquant.pipeline",
    "run": "fxquant.pipeline",
    "train": "fxquant.pipeline",
}
__all__ = [*_PUBLIC, "__version__"]
__version__ = "0.2.0"


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fxquant' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
