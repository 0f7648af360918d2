"""Records made at random, of classes, calls and states: each is refused, or built of plain parts.

    python tests/record_fuzz.py COUNT SEED

Whatever is called while records are built is watched: functions of the reader's own, and of the
few others in `_MAY_CALL`. Prints how many records did what, and the most seconds and megabytes,
as JSON.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
import torchvision
from hostile_modules import plain_net
from hostile_states import CODE_NAME
from torch import nn

import fxquant.errors
import fxquant.models
import fxquant.wording
from fxquant.errors import ModelLoadError
from fxquant.models.interpreter import Pickle, read_records
from fxquant.models.layers import is_name, may_be_a_layer
from fxquant.models.rebuild import rebuild
from fxquant.models.records import (
    Call,
    DictRecord,
    Global,
    Instance,
    ListRecord,
    Storage,
    parts_of,
)
from fxquant.models.tensors import storage_bytes

GROWTH = 500 << 20
SECONDS = 600  # for one record, after which this process is ended
_HERE = (
    *(f"{Path(fxquant.models.__file__).parent}/", fxquant.wording.__file__),
    *(fxquant.errors.__file__, __file__),
)
_LIBRARY = str(Path(os.__file__).parent)
# Parts of the standard library that the reader uses; nothing in them calls what it is given.
_LIBRARY_FILES = {
    *("abc.py", "contextlib.py", "copyreg.py", "enum.py", "inspect.py", "keyword.py"),
    *("dataclasses.py", "functools.py", "types.py", "weakref.py", "_weakrefset.py"),
    *("collections/__init__.py", "importlib/__init__.py", "re/__init__.py", "pathlib.py"),
}
_TORCH_FUNCTIONS = {("parameter.py", "__new__"), ("parameter.py", "__instancecheck__")}
_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "system", "setattr", "delattr"}
_EVENTS = ("import", "open", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "code.")

_EVIL = (
    *("posix.system", "builtins.eval", "builtins.exec", "builtins.getattr", "io.open"),
    *("torch.hub.load", "torch.serialization.load", "torch.jit._script.RecursiveScriptModule"),
    *("torch.fx.graph_module.GraphModule", "torch.fx.graph_module.reduce_graph_module"),
    *("timm.models._features_fx.FeatureGraphNet", "torch.nn.modules.lazy.LazyModuleMixin"),
    *("torchvision.models.feature_extraction.DualGraphModule", "evil_canary.Net", "no name;.x"),
    *("torch.nn.modules.module.Module", "torch.nn.parameter.UninitializedParameter"),
)
_LAYERS = (
    *(
        "torch.nn.modules.linear.Linear",
        "torch.nn.modules.conv.Conv2d",
        "torch.nn.modules.rnn.LSTM",
    ),
    *("torch.nn.modules.container.Sequential", "torch.nn.modules.activation.MultiheadAttention"),
    *("torch.nn.parallel.data_parallel.DataParallel", "torch.nn.modules.upsampling.Upsample"),
    *("torchvision.models.resnet.ResNet", "torchvision.models.detection._utils.BoxCoder"),
    *("torchvision.ops.misc.FrozenBatchNorm2d", "timm.layers.format.Format"),
)
_CALLS = (
    *("collections.OrderedDict", "collections.Counter", "collections.defaultdict"),
    *("builtins.set", "builtins.frozenset", "builtins.complex", "builtins.range", "builtins.slice"),
    *("torch.Size", "torch.device", "torch.serialization._get_layout", "_codecs.encode"),
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"),
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
    *("torch._tensor._rebuild_from_type_v2", "functools.partial", "torch._utils._rebuild_qtensor"),
    "torch.nn.backends.thnn._get_thnn_function_backend",
)
_VALUES = ("torch.float32", "torch.float8_e5m2", "torch.qint8", "torch.nn.functional.relu")
_NAMES = (
    *("weight", "forward", "training", "_modules", "_parameters", "_buffers", "_forward_hooks"),
    *("__class__", "__dict__", "_flat_weights", "num_layers", "groups", "norm_layer", "activation"),
    *(CODE_NAME, "a b", "a'b", "lambda", "", "x" * 300, "graph", "detach", "cpu", "iters", "0"),
    *("_backend", "_backward_hooks", "_non_persistent_buffers_set", "_metadata", "padding"),
)
_PLAIN = (
    *(None, True, False, 0, 1, -1, 2, 3, 64, 1 << 20, (1 << 31) - 1, 1 << 62, -(1 << 63)),
    *(0.5, float("nan"), float("inf"), 1e300, "", "zeros", "cpu", "cuda", "latin1", "a" * 20_000),
)


def named(dotted: str) -> Global:
    module, _, name = dotted.rpartition(".")
    return Global(module, name)


class Maker:
    """Makes records of any kind, alone or in the place of parts of a network's."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.networks = [_pickled(net) for net in _networks()]

    def make(self) -> tuple[object, dict[str, Storage]]:
        """A record, and the storages that there are bytes of."""
        rng = self.rng
        if rng.random() < 0.3:
            return self.anything(rng.randint(1, 6)), {}
        found = read_records(rng.choice(self.networks))
        changes = [self._change_pairs, self._change_call, self._change_instance]
        for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
            records = _all_in(found.value)
            rng.choice(changes)(rng.choice(records), records)
        return found.value, found.storages

    def anything(self, depth: int) -> object:
        rng = self.rng
        kinds: list[Callable[[int], object]] = [self.plain, self.name]
        if depth:
            kinds += [self.tuple, self.list, self.dict, self.call, self.instance, self.tensor]
        return rng.choice(kinds)(depth - 1)

    def plain(self, depth: int = 0) -> object:
        return self.rng.choice(_PLAIN)

    def name(self, depth: int = 0) -> Global:
        pools = [_EVIL] + 3 * [_LAYERS] + 3 * [_CALLS] + [_VALUES]
        return named(self.rng.choice(self.rng.choice(pools)))

    def key(self) -> object:
        odd = self.rng.random() < 0.05
        return self.anything(2) if odd else self.rng.choice(_NAMES)

    def items(self, depth: int) -> list[object]:
        return [self.anything(depth) for _ in range(self.rng.choice([0, 1, 1, 2, 3, 6]))]

    def pairs(self, depth: int) -> list[tuple[object, object]]:
        return [(self.key(), value) for value in self.items(depth)]

    def tuple(self, depth: int) -> object:
        return tuple(self.items(depth))

    def list(self, depth: int) -> object:
        return ListRecord(self.items(depth))

    def dict(self, depth: int) -> object:
        return DictRecord(self.pairs(depth))

    def call(self, depth: int) -> object:
        function = self.name() if self.rng.random() < 0.95 else self.anything(depth)
        pairs = self.pairs(depth) if self.rng.random() < 0.2 else []
        state = self.anything(depth) if self.rng.random() < 0.2 else None
        return Call(function, tuple(self.items(depth)), pairs, state)

    def instance(self, depth: int) -> object:
        tables = [(name, DictRecord(self.pairs(depth))) for name in _NAMES[3:6]]
        state = DictRecord([*tables, *self.pairs(depth)])
        odd = self.rng.random() < 0.1
        args = tuple(self.items(depth)) if self.rng.random() < 0.05 else ()
        return Instance(self.name(), args, self.anything(depth) if odd else state)

    def tensor(self, depth: int) -> object:
        numbers = [self.rng.choice([0, 1, 2, -1, 3, 1 << 30, True]) for _ in range(3)]
        storage = Storage(str(self.rng.randint(0, 3)), "torch.FloatStorage", 4, 0, 4)
        sides = tuple(numbers[: self.rng.randint(0, 3)])
        hooks = Call(named("collections.OrderedDict"), ())
        data = (storage, self.rng.choice([0, 0, 1, -1]), sides, sides, False, hooks)
        made = Call(named("torch._utils._rebuild_tensor_v2"), data)
        if self.rng.random() < 0.5:
            return made
        return Call(named("torch._utils._rebuild_parameter"), (made, True, hooks))

    def part(self, records: list[object]) -> object:
        """Something new, or something that is elsewhere in the same file."""
        return self.rng.choice(records) if self.rng.random() < 0.3 else self.anything(3)

    def _change_pairs(self, record: object, records: list[object]) -> None:
        tables = [r for r in records if isinstance(r, DictRecord) and r.pairs]
        record = record if record in tables else self.rng.choice(tables or [DictRecord([(0, 0)])])
        place = self.rng.randrange(len(record.pairs))
        key, value = record.pairs[place]
        if self.rng.random() < 0.5:
            record.pairs[place] = (key, self.part(records))
        elif self.rng.random() < 0.5:
            record.pairs[place] = (self.key(), value)
        else:
            record.pairs.append((self.key(), self.part(records)))

    def _change_call(self, record: object, records: list[object]) -> None:
        calls = [r for r in records if isinstance(r, Call)]
        if not calls:
            return
        call = self.rng.choice(calls)
        if self.rng.random() < 0.3:
            call.function = self.name()
        elif self.rng.random() < 0.3:
            call.pairs.append((self.key(), self.part(records)))
        else:
            args = [*call.args, None]
            args[self.rng.randrange(len(args))] = self.part(records)
            call.args = tuple(args[: len(call.args)] if self.rng.random() < 0.8 else args)

    def _change_instance(self, record: object, records: list[object]) -> None:
        instances = [r for r in records if isinstance(r, Instance)]
        if not instances:
            return
        instance = self.rng.choice(instances)
        if self.rng.random() < 0.6:
            instance.kind = self.name()
        elif self.rng.random() < 0.5:
            instance.state = self.part(records)
        else:
            instance.args = (self.part(records),)


def _networks() -> list[nn.Module]:
    attention = nn.TransformerEncoderLayer(4, 2, 8)
    vision = torchvision.models.VisionTransformer(8, 4, 1, 2, 4, 4, num_classes=2)
    vision.coder = torchvision.models.detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    return [plain_net(), nn.DataParallel(nn.LSTM(2, 3)), attention, vision]


def _pickled(net: nn.Module) -> bytes:
    saved = io.BytesIO()
    torch.save({"epoch": 1, "model": net}, saved)
    with zipfile.ZipFile(saved) as archive:
        return next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))


def _all_in(root: object) -> list[object]:
    """Every record in `root` once, which may contain itself."""
    found: dict[int, object] = {}
    stack = [root]
    while stack:
        record = stack.pop()
        if id(record) not in found:
            found[id(record)] = record
            stack += parts_of(record)
    return list(found.values())


def pickle_of(value: object, storages: dict[str, Storage]) -> Pickle:
    """What the interpreter would say of a file with this value."""
    records = _all_in(value)
    functions = [r.function for r in records if isinstance(r, Call)]
    kinds = [r.kind for r in records if isinstance(r, Instance)]
    names = {r for r in (*records, *functions, *kinds) if isinstance(r, Global)}
    called = frozenset(r for r in functions if isinstance(r, Global))
    return Pickle(value, frozenset(names), called, storages, 0)


class Bytes:
    """Bytes of the storages that there are, all zero."""

    def __init__(self, storages: dict[str, Storage]):
        self.storages = storages

    def size(self, storage: Storage) -> int | None:
        there = self.storages.get(storage.key)
        return None if there is None else storage_bytes(there)

    def read_into(self, storage: Storage, target: memoryview) -> None:
        target[:] = bytes(len(target))


class Watch:
    """Notes what is called and done, other than by the reader, as long as it is on."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self._event)

    def __enter__(self) -> Watch:
        self.on = True
        sys.setprofile(self._call)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)
        self.on = False

    def _event(self, event: str, args: tuple) -> None:
        if self.on and event.startswith(_EVENTS):
            self.seen.append(f"{event} {args!r:.100}")

    def _call(self, frame: FrameType, event: str, function: object) -> None:
        if event == "call" and not may_call(frame.f_code.co_filename, frame.f_code.co_name):
            self.seen.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
        elif event == "c_call" and getattr(function, "__name__", "") in _BUILTINS:
            self.seen.append(f"builtin {function!r:.100}")


def may_call(file: str, function: str) -> bool:
    """Whether a function of Python's may be called while records are built."""
    if file.startswith(("<frozen importlib", "<string>", "<frozen abc")):  # dataclasses' own
        return True
    if file.startswith(_HERE):
        return True
    if file.startswith(_LIBRARY) and "site-packages" not in file:
        return file.removeprefix(f"{_LIBRARY}/") in _LIBRARY_FILES
    return (Path(file).name, function) in _TORCH_FUNCTIONS


def check_built(value: object) -> None:
    """Raise AssertionError unless all in a value is plain; looks at it in a way of its own."""
    for part in _parts_built(value):
        if isinstance(part, torch.Tensor):
            assert type(part) in (torch.Tensor, nn.Parameter)
            assert not vars(part)
            assert not part._backward_hooks
        elif isinstance(part, nn.Module):
            kind = type(part)
            assert may_be_a_layer(Global(kind.__module__, kind.__qualname__)), kind
            assert all(is_name(key) for key in vars(part)), list(vars(part))
            assert not any(value for key, value in vars(part).items() if "_hooks" in key)
            replaced = [
                k
                for k, v in vars(part).items()
                if v is not None and callable(getattr(kind, k, None))
            ]
            assert not replaced, replaced


def _parts_built(value: object) -> list[object]:
    found: dict[int, object] = {}
    stack = [value]
    while stack:
        part = stack.pop()
        if id(part) in found:
            continue
        found[id(part)] = part
        if isinstance(part, dict):
            stack += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            stack += part
        elif hasattr(part, "__dict__") and not isinstance(part, type):
            stack += vars(part).values()
    return list(found.values())


def main(count: int, seed: int) -> None:
    torch.set_num_threads(1)
    rng, figures = random.Random(seed), Counter()
    maker, watch = Maker(rng), Watch()
    for net in maker.networks:  # with all imports that honest networks need
        found = read_records(net)
        rebuild(found, Bytes(found.storages), Path("net.pt"), ())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    resource.setrlimit(resource.RLIMIT_AS, (_size() + GROWTH,) * 2)
    slowest = 0.0
    for index in range(count):
        value, storages = maker.make()
        pickle = pickle_of(value, storages)
        signal.alarm(SECONDS)
        start = time.process_time()
        try:
            with watch:
                built = rebuild(pickle, Bytes(storages), Path("net.pt"), ())
        except ModelLoadError as error:
            words = str(error)
            figures["refused"] += 1
        else:
            check_built(built)
            words = ""
            figures["built"] += 1
        slowest = max(slowest, time.process_time() - start)
        assert len(words) < 3000, words
        assert not watch.seen, (seed, index, watch.seen[:5])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    print(json.dumps({**figures, "seconds": slowest, "megabytes": grown / 1e6}))


def _size() -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
