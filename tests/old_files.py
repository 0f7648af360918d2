"""Files as older versions of torch, and of Python, wrote them."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from model_files import Reduced
from torch import Tensor, nn
from torch.nn.backends.thnn import _get_thnn_function_backend

# What torch's layers have today and lacked once, by the class that has it.
_YOUNG: dict[type, tuple[str, ...]] = {
    nn.Module: (
        *("_non_persistent_buffers_set", "_is_full_backward_hook", "_backward_pre_hooks"),
        *("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
        *("_forward_pre_hooks_with_kwargs", "_state_dict_pre_hooks"),
        *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_hooks"),
    ),
    nn.modules.conv._ConvNd: ("padding_mode", "_reversed_padding_repeated_twice"),
    nn.modules.batchnorm._NormBase: ("track_running_stats",),
    nn.AvgPool2d: ("divisor_override", "count_include_pad", "ceil_mode"),
    nn.GELU: ("approximate",),
    nn.Upsample: ("recompute_scale_factor",),
    nn.Softmax: ("dim",),
    nn.modules.rnn.RNNBase: ("proj_size",),
    nn.MultiheadAttention: ("batch_first", "_qkv_same_embed_dim"),
    nn.TransformerEncoderLayer: ("norm_first", "activation_relu_or_gelu"),
}


def aged(net: nn.Module) -> nn.Module:
    """The network, whose layers have lost what torch 1.0 didn't write."""
    for module in net.modules():
        for kind, names in _YOUNG.items():
            for name in names if isinstance(module, kind) else ():
                vars(module).pop(name, None)
        module._buffers.pop("num_batches_tracked", None)
        vars(module)["_backend"] = Reduced(_get_thnn_function_backend)
        for table in ("_modules", "_parameters", "_buffers"):
            vars(module)[table] = OrderedDict(vars(module)[table])
    return net


def write_tar(path: Path, state: Mapping[str, Tensor]) -> None:
    """A state dict of float32 tensors in the format before 0.1.10."""
    path.write_bytes(tar_of(state))


def tar_of(state: Mapping[str, Tensor]) -> bytes:
    """The same as bytes; each tensor has a storage of its own."""
    storages, tensors = io.BytesIO(), io.BytesIO()
    pickle.dump(len(state), storages, 2)
    pickle.dump(len(state), tensors, 2)
    for key, tensor in enumerate(state.values()):
        assert tensor.dtype == torch.float32
        pickle.dump((100 + key, "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
        pickle.dump((key, 100 + key, torch.FloatTensor), tensors, 2)
        tensors.write(struct.pack("<ii", tensor.dim(), 0))
        numbers = (*tensor.shape, *tensor.stride(), 0)
        tensors.write(struct.pack(f"<{len(numbers)}q", *numbers))
    pickle.dump([], storages, 2)
    numbered = {id(tensor): key for key, tensor in enumerate(state.values())}
    content = io.BytesIO()
    pickler = pickle.Pickler(content, 2)
    pickler.persistent_id = lambda value: numbered.get(id(value))
    pickler.dump(OrderedDict(state))
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        parts = {"storages": storages, "tensors": tensors, "pickle": content}
        for name, part in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(part.getvalue())
            archive.addfile(member, io.BytesIO(part.getvalue()))
    return made.getvalue()


def write_big_endian(path: Path, state: Mapping[str, Tensor]) -> None:
    """A state dict of float32 tensors, as torch.save writes it on a big-endian machine."""
    assert sys.byteorder == "little"
    saved = io.BytesIO()
    torch.save(state, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if "/data/" in name:
                numbers = struct.unpack(f"<{len(content) // 4}f", content)
                content = struct.pack(f">{len(numbers)}f", *numbers)
            new.writestr(name, b"big" if name.endswith("/byteorder") else content)


def write_python_2(path: Path, key: str, numbers: list[float]) -> None:
    """An OrderedDict of one tensor as Python 2 pickled it: with its text as bytes."""

    def text(word: str) -> bytes:
        return b"U" + bytes([len(word)]) + word.encode()

    count = b"K" + bytes([len(numbers)])
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + count
    hooks = b"ccollections\nOrderedDict\n]\x85R"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQK\0" + count + b"\x85K\1\x85\x89"
    )
    made = b"ccollections\nOrderedDict\n](]" + text(key) + b"a" + tensor + hooks + b"tRae\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("old/data.pkl", b"\x80\x02" + made)
        archive.writestr("old/data/0", struct.pack(f"<{len(numbers)}f", *numbers))
