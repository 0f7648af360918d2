"""Archives and older formats that lie about what is in them: bombs, overlaps, links, damage."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from hostile_box import Case
from hostile_modules import plain_net
from hostile_pickles import MARK, SHAPE
from model_files import Reduced
from old_files import write_tar
from torch import nn

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def good_archive() -> dict[str, bytes]:
    """The entries of a network that torch.save wrote."""
    buffer = io.BytesIO()
    torch.save(plain_net(), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(
    write: Callable[[zipfile.ZipFile, dict[str, bytes]], object],
    says: str,
    compression: int = zipfile.ZIP_STORED,
) -> Case:
    """An archive that `write` fills, given the entries of a good one."""

    def make(folder: Path) -> list[str]:
        with zipfile.ZipFile(folder / "evil.pt", "w", compression) as archive:
            write(archive, good_archive())
        return ["evil.pt", *SHAPE]

    return Case(make, says)


def damaged(change: Callable[[bytearray], object], says: str, legacy: bool = False) -> Case:
    """A good file whose bytes are changed."""

    def make(folder: Path) -> list[str]:
        content = plain_net().state_dict() if legacy else plain_net()
        torch.save(content, folder / "evil.pt", _use_new_zipfile_serialization=not legacy)
        data = bytearray((folder / "evil.pt").read_bytes())
        change(data)
        (folder / "evil.pt").write_bytes(data)
        return ["evil.pt", *SHAPE]

    return Case(make, says)


def _all(archive: zipfile.ZipFile, entries: dict[str, bytes], **more: bytes) -> None:
    for name, content in {**entries, **more}.items():
        archive.writestr(name, content)


def _pickle_bomb(archive: zipfile.ZipFile, entries: dict[str, bytes]) -> None:
    _all(archive, entries | {"archive/data.pkl": b"\0" * 300_000_000})


def _storage_bomb(archive: zipfile.ZipFile, entries: dict[str, bytes]) -> None:
    _all(archive, entries | {"archive/data/0": b"\0" * 300_000_000})


def _twice(archive: zipfile.ZipFile, entries: dict[str, bytes]) -> None:
    _all(archive, entries)
    archive.writestr("archive/DATA.PKL", b"\x80\x02N.")


def _overlaps(data: bytearray) -> None:
    """Let a thousand entries of the directory be one and the same 100 kB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", b"\0" * 100_000)
        entry = archive.getinfo("archive/data/0")
        for index in range(1, 1000):
            copy = zipfile.ZipInfo(f"archive/data/{index}")
            copy.file_size = copy.compress_size = entry.file_size
            copy.CRC, copy.header_offset = entry.CRC, entry.header_offset
            archive.filelist.append(copy)
    data[:] = buffer.getvalue()


def _second_end(data: bytearray) -> None:
    """An archive before the archive, with a comment: which is read depends on the reader."""
    data[:0] = b"PK\x03\x04 something else "


def _flip(needle: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[data.index(needle) + len(needle) // 2] ^= 0x10

    return change


def _flip_weights(data: bytearray) -> None:
    data[data.index(plain_net()[0].weight.detach().numpy().tobytes()[:16])] ^= 0x40


def _encrypted(data: bytearray) -> None:
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := data.find(sign, start)) >= 0:
            data[start + offset] |= 1
            start += 4


def _tar(folder: Path, prefix: bytes = b"") -> list[str]:
    """The format before 0.1.10, with a link where torch unpacks; its name may start as a pickle."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        if prefix:
            archive.addfile(tarfile.TarInfo("." * len(prefix)))
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name in ("../../ran", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    content = bytearray(buffer.getvalue())
    if prefix:
        content[: len(prefix)] = prefix
        total = sum(content[:148]) + 8 * 32 + sum(content[156:512])
        content[148:156] = b"%06o\0 " % total
    (folder / "evil.pt").write_bytes(content)
    return ["evil.pt", *SHAPE]


def _changed_tar(old: bytes, new: bytes) -> Callable[[Path], list[str]]:
    """A state dict in the format before 0.1.10, in which some bytes were replaced."""

    def make(folder: Path) -> list[str]:
        write_tar(folder / "evil.pt", {"weight": torch.zeros(2, 3)})
        data = (folder / "evil.pt").read_bytes()
        assert old in data
        (folder / "evil.pt").write_bytes(data.replace(old, new))
        return ["evil.pt", *SHAPE]

    return make


def _legacy_claims(folder: Path) -> list[str]:
    """A tensor of 8 GB, in the format before 1.6, of which there is no byte."""
    torch.save({"w": torch.zeros(3)}, folder / "evil.pt", _use_new_zipfile_serialization=False)
    data = (folder / "evil.pt").read_bytes()
    huge = b"J" + struct.pack("<i", 2_000_000_000)
    data = data.replace(b"q\x07K\x03", b"q\x07" + huge).replace(
        b"cpuq\x06K\x03", b"cpuq\x06" + huge
    )
    assert huge in data
    (folder / "evil.pt").write_bytes(data)
    return ["evil.pt", *SHAPE]


def _torchscript(folder: Path) -> list[str]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(plain_net(), torch.zeros(1, 3, 8, 8)), folder / "evil.pt")
    return ["evil.pt", *SHAPE]


def _exported(folder: Path) -> list[str]:
    """An exported program with a pickle inside it that runs a command."""
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3),)), folder / "good.pt2")
    evil = io.BytesIO()
    torch.save(Reduced(__import__("os").system, f"touch {MARK}"), evil)
    with (
        zipfile.ZipFile(folder / "good.pt2") as good,
        zipfile.ZipFile(folder / "evil.pt2", "w") as archive,
    ):
        for name in good.namelist():
            pickled = name.endswith((".pt", ".pkl")) or "/weights/" in name
            archive.writestr(name, evil.getvalue() if pickled else good.read(name))
    return ["evil.pt2", *SHAPE]


DEFLATED = zipfile.ZIP_DEFLATED
CASES = {
    "a bomb as the pickle": written(_pickle_bomb, "it is compressed or encrypted", DEFLATED),
    "a bomb as a storage": written(_storage_bomb, "it is compressed or encrypted", DEFLATED),
    "a pickle of 20 MB": written(
        lambda a, e: _all(a, e | {"archive/data.pkl": b"}" * (20 << 20)}), "larger than 16 MB"
    ),
    "entries that overlap": damaged(_overlaps, "claim to be larger than the file"),
    "entries that are encrypted": damaged(_encrypted, "it is compressed or encrypted"),
    "entries above the folder": written(
        lambda a, e: _all(a, e | {"../../ran": b"x"}), "not all of it lies in"
    ),
    "entries with absolute names": written(
        lambda a, e: _all(a, e | {"/tmp/ran": b"x"}), "not all of it lies in"
    ),
    "two entries of one name": written(_twice, "have the same name"),
    "an archive behind another": damaged(_second_end, "its directory is not where"),
    "an archive with a comment": damaged(
        lambda d: d.__setitem__(slice(len(d) - 2, None), b"\4\0text"), "its directory is not where"
    ),
    "an archive of nothing": written(lambda a, e: a.writestr("x/y", b""), "torch.save did not"),
    "a truncated archive": damaged(lambda d: d.__delitem__(slice(len(d) // 2, None)), "damaged"),
    "an archive without its end": damaged(lambda d: d.__delitem__(slice(-30, None)), "damaged"),
    "a flipped bit in the directory": damaged(_flip(b"PK\x01\x02"), "damaged"),
    "a flipped bit in the pickle": damaged(_flip(b"ctorch.nn"), "does not match its checksum"),
    "a flipped bit in the weights": damaged(_flip_weights, "does not match its checksum"),
    "a flipped bit before 1.6": damaged(
        lambda d: d.__setitem__(40, d[40] ^ 0xFF), "can't be read", legacy=True
    ),
    "a truncated file before 1.6": damaged(
        lambda d: d.__delitem__(slice(len(d) // 2, None)), "can't be read", legacy=True
    ),
    "8 GB before 1.6": Case(_legacy_claims, "claim to be larger than the file"),
    "a tar archive with a link": Case(_tar, "'storages' in it is no plain file"),
    "a tar archive that starts as a pickle": Case(
        lambda folder: _tar(folder, LEGACY_MAGIC), "can't be read"
    ),
    "a tar archive of another program": Case(
        _changed_tar(b"tensors\0", b"tensorz\0"), "damaged tar archive|torch did not write"
    ),
    "a storage of 2^60 numbers in a tar archive": Case(
        _changed_tar(struct.pack("<q", 6), struct.pack("<q", 1 << 60)), "larger than the file"
    ),
    "a tensor of 2^30 dimensions in a tar archive": Case(
        _changed_tar(struct.pack("<ii", 2, 0), struct.pack("<ii", 1 << 30, 0)), "of 1073741824 dim"
    ),
    "a tensor behind its storage in a tar archive": Case(
        _changed_tar(struct.pack("<qq", 2, 3), struct.pack("<qq", 2, 30)), "behind its storage"
    ),
    "a TorchScript archive": Case(_torchscript, "TorchScript"),
    "an exported program": Case(_exported, "not supported yet"),
}
