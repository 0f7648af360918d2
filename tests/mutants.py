"""Good files with a few bytes changed: each loads, or is refused with an error of ours.

    python tests/mutants.py FOLDER COUNT SEED

Prints how many of each kind did which, as JSON. What crashes the process crashes this one.
"""

from __future__ import annotations

import io
import json
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from hostile_modules import plain_net
from hostile_others import IMAGES, LABELS, array
from old_files import tar_of
from safetensors.torch import save

from fxquant.errors import FxQuantError
from fxquant.models import load_model
from fxquant.report.evaluate import EvaluationData
from fxquant.settings import Settings, read_settings, to_toml


def main(folder: Path, count: int, seed: int) -> None:
    rng, figures = random.Random(seed), Counter()
    kinds = _kinds()
    for _ in range(count):
        name = rng.choice(list(kinds))
        make, read = kinds[name]
        path = folder / "mutant"
        path.write_bytes(make(rng))
        try:
            read(path)
            figures[f"{name} read"] += 1
        except FxQuantError:
            figures[f"{name} refused"] += 1
    print(json.dumps(dict(sorted(figures.items()))))


def _kinds() -> dict[str, tuple[Callable[[random.Random], bytes], Callable[[Path], object]]]:
    net = plain_net()
    module, state, legacy = (io.BytesIO() for _ in range(3))
    torch.save(net, module)
    torch.save(net.state_dict(), state)
    torch.save(net.state_dict(), legacy, _use_new_zipfile_serialization=False)
    older = io.BytesIO()
    torch.save(net, older, _use_new_zipfile_serialization=False)
    weights = {k: v for k, v in net.state_dict().items() if v.dtype == torch.float32}
    tar = tar_of(weights)
    arrays = {"images.npy": array(IMAGES), "labels.npy": array(LABELS)}
    toml = to_toml(Settings((3, 8, 8)).to_dict()).encode()
    arch = {"arch": "hostile_modules:plain_net"}

    def load(path: Path) -> object:
        return load_model(path)

    def load_state(path: Path) -> object:
        return load_model(path, **arch)

    def evaluate(path: Path) -> object:
        data = EvaluationData(path)
        data.check((3, 8, 8))
        return list(data.batches())

    return {
        "archives": (lambda rng: mutate(module.getvalue(), rng), load),
        "pickles of modules": (lambda rng: repacked(module.getvalue(), rng), load),
        "pickles of state dicts": (lambda rng: repacked(state.getvalue(), rng), load_state),
        "files before 1.6": (lambda rng: mutate(legacy.getvalue(), rng), load_state),
        "modules before 1.6": (lambda rng: mutate(older.getvalue(), rng), load),
        "tar archives": (lambda rng: mutate(tar, rng), load_state),
        "safetensors": (lambda rng: mutate(save(net.state_dict()), rng), load_state),
        "evaluation data": (lambda rng: zipped(arrays, rng), evaluate),
        "settings": (lambda rng: mutate(toml, rng), read_settings),
    }


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip, drop, double or replace a few bytes; most often near the start, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 400)
        place, size = rng.randrange(max(reach, 1)), rng.choice([1, 1, 1, 2, 8, 64])
        action = rng.random()
        if action < 0.5 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif action < 0.7:
            changed[place : place + size] = rng.randbytes(size)
        elif action < 0.8:
            del changed[place : place + size]
        elif action < 0.9:
            changed[place:place] = changed[place : place + size]
        else:
            del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def repacked(data: bytes, rng: random.Random) -> bytes:
    """An archive whose pickle alone is changed, with a checksum that is right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, mutate(content, rng) if name.endswith("data.pkl") else content)
    return buffer.getvalue()


def zipped(arrays: dict[str, bytes], rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in arrays.items():
            archive.writestr(name, mutate(content, rng) if rng.random() < 0.6 else content)
    return buffer.getvalue() if rng.random() < 0.7 else mutate(buffer.getvalue(), rng)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
