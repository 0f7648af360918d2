"""Trains by several recipes, alone or under torchrun, and leaves what came out in a file.

usage: together.py FILE SEED
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from small_runs import RECIPES, make, prepared

from fxquant.datafree import engine as engine_module
from fxquant.datafree import processes
from fxquant.datafree.ablation import ablate
from fxquant.datafree.recipe import Recipe


def in_parts(recipe: Recipe) -> Recipe:
    return replace(recipe, schedule=replace(recipe.schedule, parts=2))


# Every way of weighing, every loss; the batch norms of the network are no multiple of the batch.
VARIANTS: dict[str, Recipe] = {
    "default": RECIPES["ddaq"],
    "paper": RECIPES["paper"],
    "swapped": ablate(RECIPES["paper"], swap=["l_bn", "l_adv"]),
    "in parts": ablate(in_parts(RECIPES["paper"]), swap=["l_bn", "l_adv"]),
    "not fine-tuned": RECIPES["paper without fine-tuning"],
    "zeroq": RECIPES["zeroq"],
}


def train(recipe: Recipe, seed: int) -> dict:
    """All that a run comes to, and the gradients of the last step of each kind."""
    # Which way a weight is rounded hangs on the last digit of what comes before.
    schedule = replace(recipe.schedule, keep_closer=False, round_weights=False)
    # A grid behind a grid has more edges to round apart at.
    engine = make(replace(recipe, schedule=schedule), prepared(sum_bits=3), seed=seed)
    gradients: dict[str, torch.Tensor] = {}
    for who in ("sampler", "student"):
        _keep_gradients(engine, who, gradients)
    engine.run()
    return {
        "curves": engine.history.curves,
        "student": engine.student.state_dict(),
        "images": engine.held_back,
        "importance": engine.importance and vars(engine.importance),
        "gradients": gradients,
        "replay": engine.replay and engine.replay.images,
    }


def _keep_gradients(engine, who: str, gradients: dict[str, torch.Tensor]) -> None:
    """Keep those that the optimiser sees in its last step, when all losses and weights count."""

    def keep(optimizer, *args) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            if parameter.grad is not None:
                gradients[f"{who}.{index}"] = parameter.grad.clone()

    optimizer = engine.optimizer if who == "student" else engine.sampler.optimizer
    if optimizer is not None:
        optimizer.register_step_pre_hook(keep)


def main() -> None:
    torch.set_num_threads(1)
    engine_module.HELD_BACK = 12
    with processes.joined("cpu"):
        found = {name: train(recipe, int(sys.argv[2])) for name, recipe in VARIANTS.items()}
        for result in found.values():  # every process must hold the same
            first = processes.agree(result["student"])
            assert all(torch.equal(v, first[k]) for k, v in result["student"].items())
            assert processes.agree(result["curves"]) == result["curves"]
        if processes.rank() == 0:
            torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
