"""Which modules get a frame around their boxes: blocks of a size in which one finds one's way."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 0.4  # of a drawing's boxes in one frame; a module that holds more is split into its own
FEWEST = 2


def choose_frames(paths: Sequence[str]) -> dict[str, list[int]]:
    """Numbers of the boxes of each framed module; `paths` are the modules that boxes belong to."""
    frames: dict[str, list[int]] = {}
    _split(paths, list(range(len(paths))), 0, frames)
    return frames


def _split(
    paths: Sequence[str], boxes: list[int], depth: int, frames: dict[str, list[int]]
) -> None:
    """Frame the modules that the boxes belong to `depth` levels down, or their submodules."""
    members: dict[str, list[int]] = {}
    for box in boxes:
        parts = paths[box].split(".")
        if paths[box] and len(parts) > depth:
            members.setdefault(".".join(parts[: depth + 1]), []).append(box)
    for path, held in members.items():
        if len(held) < FEWEST:
            continue
        inner: dict[str, list[int]] = {}
        if len(held) > MOST * len(paths):
            _split(paths, held, depth + 1, inner)
        frames.update(inner or {path: held})
