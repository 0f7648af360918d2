"""Teacher and student of a model: two graphs with the same taps."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from torch import nn

from fxquant.errors import SettingError
from fxquant.graph.absorb_biases import absorb_biases
from fxquant.graph.detectors import DetectorNetwork, is_detector
from fxquant.graph.equalize import equalize
from fxquant.graph.fold_batchnorm import fold_batchnorm
from fxquant.graph.forms.passes import one_form, plain_copy
from fxquant.graph.forms.rules import Rules, check_rules, rule_leaves
from fxquant.graph.insert_quantizers import first_and_last_layer, insert_quantizers
from fxquant.graph.insert_taps import (
    BN_TAPS,
    choose_features,
    count_taps,
    insert_attention_taps,
    insert_bn_taps,
    insert_feature_taps,
)
from fxquant.graph.passes import Pass, run_passes
from fxquant.graph.trace import LeftOut, trace
from fxquant.spec import QConfig


@dataclass(frozen=True)
class Prepared:
    """A model made ready for data-free quantization.

    `teacher` computes what the model does, with taps at batch norm inputs and features, and where
    there are no batch norms at attention's outputs;
    `student` is the same network with folded batch norms, fake-quant nodes that are not
    calibrated yet, and the same feature taps. `rewrites` counts what each pass changed.
    `left_out` is what tracing could not look into, `notes` what it took for granted, each a
    sentence, and `fixed_size` the regions that are right at `input_shape` alone.
    """

    teacher: nn.Module
    student: nn.Module
    config: QConfig
    input_shape: tuple[int, ...]
    features: tuple[str, ...]
    rewrites: dict[str, int]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    fixed_size: tuple[str, ...] = ()


def prepare(
    model: nn.Module,
    config: QConfig,
    input_shape: tuple[int, ...],
    *,
    leaves: Collection[type[nn.Module]] = (),
    rules: Rules | None = None,
) -> Prepared:
    """Trace `model` and build its teacher and student; the model itself stays as it was.

    `input_shape` is (channels, height, width), or a tuple of such shapes for a model of several
    inputs. Modules of the classes in `leaves` are not looked into. `rules` say of module classes
    and functions what they do to numbers, and so where quantizers go around them:
    `docs/architectures.md`. Raises TraceError where the model can't be traced, SettingError
    where there is nothing to quantize.
    """
    rules = rules or {}
    check_rules(rules)
    model = plain_copy(model)
    model = DetectorNetwork(model) if is_detector(model) else model
    traced = trace(model, input_shape, leaves=(*leaves, *rule_leaves(rules)))
    teacher = traced.model
    run_passes(teacher, one_form(rules))
    moved = run_passes(teacher, _moves(config))
    student = copy.deepcopy(teacher)
    features, ends = choose_features(teacher), first_and_last_layer(teacher)
    tap_features = ("insert_feature_taps", partial(insert_feature_taps, names=features))
    run_passes(teacher, [("insert_bn_taps", insert_bn_taps), tap_features])
    if not count_taps(teacher, BN_TAPS):
        run_passes(teacher, [("insert_attention_taps", insert_attention_taps)])
    rewrites = run_passes(
        student,
        [
            ("fold_batchnorm", fold_batchnorm),
            ("insert_quantizers", partial(insert_quantizers, config=config, ends=ends)),
            tap_features,
        ],
    )
    if not rewrites["insert_quantizers"]:
        raise SettingError(
            "there is nothing to quantize: the model has no convolution or linear layer, "
            "or layer rules keep all of them float"
        )
    return Prepared(
        teacher,
        student,
        config,
        input_shape,
        tuple(features),
        moved | rewrites,
        traced.left_out,
        traced.notes,
        traced.fixed_size,
    )


def _moves(config: QConfig) -> list[tuple[str, Pass]]:
    """Passes over the teacher, which the student is a copy of, so that their layers still pair."""
    wanted = ((config.equalizes, equalize), (config.absorb_biases, absorb_biases))
    return [(apply.__name__, apply) for asked, apply in wanted if asked]
