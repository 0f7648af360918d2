"""Which of these passes there are, and their order."""

from __future__ import annotations

from functools import partial

from torch import nn

from fxquant.graph.forms.attention import replace_attention
from fxquant.graph.forms.batchnorms import own_batchnorms
from fxquant.graph.forms.constants import fold_constants
from fxquant.graph.forms.dead_code import drop_dead_code
from fxquant.graph.forms.einsum import matmul_einsums
from fxquant.graph.forms.gated import split_gated
from fxquant.graph.forms.identities import drop_identities
from fxquant.graph.forms.layers import own_layers
from fxquant.graph.forms.out_of_place import out_of_place
from fxquant.graph.forms.parametrizations import bake_parametrizations, copy_in_eval
from fxquant.graph.forms.rules import Rules, give_kinds
from fxquant.graph.forms.scaled_attention import decompose_attention
from fxquant.graph.passes import Pass


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in eval mode, made of modules that torch.fx sees through."""
    copied = copy_in_eval(model)
    replace_attention(copied)
    bake_parametrizations(copied)
    return copied


def one_form(rules: Rules) -> list[tuple[str, Pass]]:
    """The passes over a traced model, by name: each relies on those before it."""
    return [
        ("give_kinds", partial(give_kinds, rules=rules)),
        ("drop_identities", drop_identities),
        ("out_of_place", out_of_place),
        ("drop_dead_code", drop_dead_code),
        ("matmul_einsums", matmul_einsums),
        ("split_gated", split_gated),
        ("fold_constants", fold_constants),
        ("decompose_attention", decompose_attention),
        ("own_batchnorms", own_batchnorms),
        ("own_layers", own_layers),
    ]
