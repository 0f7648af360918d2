"""What `fxquant inspect` prints for people."""

from __future__ import annotations

from typing import Any

from fxquant.cli.tables import Column, Page
from fxquant.inputs import input_shapes
from fxquant.report.floating import grouped
from fxquant.report.formats import amount, count, number, percent, size

_LAYERS = (
    Column("layer", fold=True),
    Column("kind"),
    Column("weights"),
    Column("params", right=True),
    Column("MACs", right=True),
    Column("W", right=True),
    Column("A", right=True),
    Column("integer"),
)
_PAIRS = (Column(""), Column(""))


def print_inspection(facts: dict[str, Any]) -> None:
    """Layers, what stays float and why, taps, then size and operations before and after."""
    page = Page()
    _print_layers(page, facts["layers"])
    _print_float(page, facts)
    _print_left_out(page, facts)
    _print_taps(page, facts["taps"])
    _print_totals(page, facts)


def _print_layers(page: Page, layers: list[dict[str, Any]]) -> None:
    reasons = [layer["kernel_reason"] for layer in layers if layer["kernel_reason"]]
    reasons = list(dict.fromkeys(reasons))
    page.title("Layers")
    page.table(_LAYERS, [_row(page, layer, reasons) for layer in layers])
    if page.is_terminal:
        for i, reason in enumerate(reasons, 1):
            page.text(f"{i}: {reason}")


def _row(page: Page, layer: dict[str, Any], reasons: list[str]) -> list[str]:
    verdict, reason = "yes", layer["kernel_reason"]
    if reason:
        verdict = "float" if layer["float_reason"] else "no"
        verdict += f" {reasons.index(reason) + 1}" if page.is_terminal else f": {reason}"
    return [
        layer["name"] or "the model",
        layer["kind"],
        "x".join(map(str, layer["weight_shape"])) or "-",
        amount(layer["parameters"]),
        amount(layer["macs"]),
        str(layer["weight_bits"] or "-"),
        str(layer["act_bits"] or "-"),
        verdict,
    ]


def _print_float(page: Page, facts: dict[str, Any]) -> None:
    page.title("In floating point")
    groups = grouped(facts["float"])
    if not groups:
        page.text("nothing that was found", indent=2)
    for group in groups:
        names = group["names"]
        page.text(f"{group['what']}, {count(len(names), 'place')}: {group['reason']}", indent=2)
        page.names(names, indent=4)


def _print_left_out(page: Page, facts: dict[str, Any]) -> None:
    if facts["left_out"]:
        page.title("Not looked into")
    for part in facts["left_out"]:
        where = f", {part['file']}:{part['line']}" if part["file"] else ""
        page.text(f"{part['name'] or 'the model'} ({part['type']}){where}", indent=2)
        page.text(part["reason"], indent=4)
        if part["hidden"]:
            page.text(f"hides {count(len(part['hidden']), 'layer')}:", indent=4)
            page.names([name or "the model" for name in part["hidden"]], indent=6)
    if facts["fixed_size"]:
        page.title(f"Right at input {_shape(facts)} alone")
        page.names([name or "the model" for name in facts["fixed_size"]], indent=2)
    if facts["notes"]:
        page.title("Notes")
    for note in facts["notes"]:
        page.text(note, indent=2)


def _print_taps(page: Page, taps: dict[str, Any]) -> None:
    page.title("Taps")
    page.text(f"inputs of batch norms, {taps['batchnorm']}:", indent=2)
    missing = ["none with running statistics: there is nothing for a data-free recipe to match"]
    page.names(taps["batchnorm_names"] or missing, indent=4)
    page.text(f"features, {len(taps['features'])}:", indent=2)
    page.names(taps["features"], indent=4)


def _print_totals(page: Page, facts: dict[str, Any]) -> None:
    model, config, summary = facts["model"], facts["settings"]["config"], facts["summary"]
    widths = f"W{config['weight_bits']}A{config['act_bits']}"
    page.title(f"{model['name']}, input {_shape(facts)}, {widths}")
    layers = summary["layers_quantized"] + summary["layers_float"]
    before, after = facts["size"]["float_bytes"], facts["size"]["weights_bytes"]
    rows = [
        ("parameters", amount(model["parameters"])),
        ("weights", f"{size(before)} -> {size(after)}{_factor(before, after, 'smaller')}"),
        ("MACs", f"{amount(model['macs'])} for one input"),
        ("BitOps", _bitops(facts["bitops"])),
        (
            "quantized",
            f"{summary['layers_quantized']} of {count(layers, 'layer')}, "
            f"{percent(100 * summary['macs_quantized'])} of MACs",
        ),
        ("integer kernels", f"{summary['layers_integer']} of {count(layers, 'layer')}"),
        ("batch norms folded", str(summary["batchnorms_folded"])),
    ]
    page.table(_PAIRS, rows)
    if summary["layers_saturating"]:
        page.text(_processors(summary["layers_saturating"]))


def _processors(layers: int) -> str:
    """What 8-bit weights mean for the speed of a file that is right on every processor."""
    return (
        f"{count(layers, 'layer')} of 8-bit weights: stored as uint8, which is right on every "
        "processor, and slower than int8 on those with VNNI. Fast on all of them: --weight-bits 7; "
        "int8, for processors with VNNI alone: --processor vnni."
    )


def _bitops(bitops: dict[str, int]) -> str:
    before, after = bitops["float"], bitops["quantized"]
    return f"{amount(before)} -> {amount(after)}{_factor(before, after, 'fewer')}"


def _factor(before: float, after: float, what: str) -> str:
    return f", {number(before / after, 1)} times {what}" if after else ""


def _shape(facts: dict[str, Any]) -> str:
    shapes = input_shapes(facts["model"]["input_shape"])
    return " and ".join("x".join(map(str, shape)) for shape in shapes)
