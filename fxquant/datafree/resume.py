"""A state to go on from, checked before an engine stands in it and after: files come from anywhere.

What torch checks itself, names and shapes of a module's state, is left to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxquant.datafree.engine import Engine
from fxquant.schema import Check, flag, many, mapping, maybe, number, table, text, whole

_DEFAULTS = {
    key: value
    for key, value in torch.optim.Adam([torch.zeros(1)]).param_groups[0].items()
    if key not in ("params", "lr", "betas")
}
_NUMBERS = many(number, tuple)


def resume(engine: Engine, state: Any, image_shape: tuple[int, ...]) -> None:
    """Let an engine stand where the one stood that gave this state.

    Raises an error of whatever kind where the state is not that of such an engine.
    """
    _check_state(image_shape)(state, "")
    phases = engine.phases()
    phase_index, step = state["phase_index"], state["step"]
    if phase_index > len(phases) or step > (phases[phase_index].total if step else 0):
        raise ValueError(f"there is no step {step} of phase {phase_index}")
    _require_begun(engine, state)
    engine.load_state_dict(state)
    for optimizer in _optimizers(engine):
        _require_fit(optimizer)


def _tensor(dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> Check:
    """Tensors of a kind; with a shape those of several such images."""

    def check_tensor(value: Any, where: str) -> None:
        fits = isinstance(value, Tensor) and value.dtype == dtype
        if not fits or (shape and (value.shape[1:] != shape or not len(value))):
            raise ValueError(f"{where} is no {dtype} of the shape that it has in a run")

    return check_tensor


def _state_dict(value: Any, where: str) -> None:
    mapping(_any_tensor)(value, where)


def _any_tensor(value: Any, where: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{where} is no tensor")


def _check_state(image_shape: tuple[int, ...]) -> Check:
    images = _tensor(torch.float32, tuple(image_shape))
    pixels = {"images": maybe(images), "finished": many(images), "optimizer": maybe(_adam)}
    generator = {"network": _state_dict, "optimizer": _adam}

    def sampler(value: Any, where: str) -> None:
        is_generator = isinstance(value, dict) and "network" in value
        table(generator if is_generator else pixels)(value, where)

    unit = table({"soft": mapping(_state_dict), "optimizer": _adam})
    replay = table({"kept": maybe(images), "images": maybe(images), "position": whole})
    choice = table({"trains": flag, "kept": text, "before": maybe(_state_dict)})
    curves = mapping(_tensor(torch.float64))
    importance = table({"layers": many(text, tuple), "trace": _NUMBERS, "standard_error": _NUMBERS})
    return table(
        {
            "phase_index": whole,
            "step": whole,
            "rng": _tensor(torch.uint8),
            "student": _state_dict,
            "optimizer": _adam,
            "sampler": sampler,
            "polisher": maybe(table(pixels)),
            "replay": maybe(replay),
            "history": table({"curves": curves}),
            "importance": maybe(importance),
            "widths": maybe(_WIDTHS),
            "held_back": maybe(images),
            "reconstructor": table({"images": maybe(images), "current": maybe(unit)}),
            "choice": choice,
            "seconds": mapping(number),
        }
    )


_POINT = table(
    {
        "size": number,
        "bitops": whole,
        "average_bits": number,
        "criterion": number,
        "bits": maybe(whole),
    }
)
_LAYER = table({"name": text, "bits": whole, "trace": number, "criterion": _NUMBERS})
_WIDTHS = table(
    {
        "measure": text,
        "budget": number,
        "exact": flag,
        "widths": many(whole, tuple),
        "chosen": _POINT,
        "frontier": many(_POINT, tuple),
        "flat": many(_POINT, tuple),
        "layers": many(_LAYER, tuple),
    }
)


def _adam(value: Any, where: str) -> None:
    """The state of an Adam as this package makes them: all but the rates stand fixed."""
    if not isinstance(value, dict) or value.keys() != {"state", "param_groups"}:
        raise ValueError(f"{where} is no state of an optimiser")
    moments = table({"step": _any_tensor, "exp_avg": _any_tensor, "exp_avg_sq": _any_tensor})
    for entry in value["state"].values():
        moments(entry, f"{where}.state")
    group = table(
        {"lr": number, "betas": _betas, "params": many(whole), **dict.fromkeys(_DEFAULTS, _as_is)},
        base_lr=number,
        decays=flag,
        kind=text,
        layer=text,
    )
    many(group)(value["param_groups"], f"{where}.param_groups")
    for options in value["param_groups"]:
        strange = [key for key, default in _DEFAULTS.items() if options[key] != default]
        if strange:
            raise ValueError(f"{where} has another {strange[0]} than a run")


def _betas(value: Any, where: str) -> None:
    many(number, type(value) if isinstance(value, list | tuple) else tuple)(value, where)
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"{where} is no pair of numbers from 0 to below 1")


def _as_is(value: Any, where: str) -> None:
    """Compared with what it must be elsewhere."""


def _require_begun(engine: Engine, state: dict[str, Any]) -> None:
    """What a phase leaves behind must be there for the phases after it."""
    names = [phase.name for phase in engine.phases()]
    done = names[: state["phase_index"]]
    if "calibration" not in done:
        return
    missing = state["held_back"] is None
    missing |= engine.replay is not None and (state["replay"] or {}).get("kept") is None
    if missing:
        raise ValueError("its images are missing")


def _optimizers(engine: Engine) -> Iterator[Optimizer]:
    """Every optimiser that an engine holds at this moment."""
    for holder in (engine, engine.sampler, engine.polisher, engine.reconstructor.current):
        optimizer = getattr(holder, "optimizer", None)
        if optimizer is not None:
            yield optimizer


def _require_fit(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entry = optimizer.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in entry and entry[name].shape != parameter.shape:
                    raise ValueError(f"an optimiser's {name} has another shape than its parameter")
            if "step" in entry and entry["step"].numel() != 1:
                raise ValueError("an optimiser's step is no number")
