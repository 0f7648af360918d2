"""What report.json holds: the values that are shown, each of the kind that it is shown as."""

from __future__ import annotations

from fxquant.schema import flag, many, maybe, number, plain, table, text, whole

_DIFFERENCE = table(
    {
        "max_difference": number,
        "sqnr_db": number,
        "agreement": maybe(number),
        "decisions_changed": maybe(number),
        "images": whole,
    }
)
# What else a parity check tells is read by the exporters, which know it.
_PARITY = table(
    {
        "passed": flag,
        "unoptimized": _DIFFERENCE,
        "optimized": _DIFFERENCE,
        "convolutions": whole,
        "convolutions_integer": whole,
        "linears": whole,
        "linears_integer": whole,
        "file_bytes": whole,
        "images": whole,
        "diverges_at": maybe(text),
    },
    others=plain,
    amplified=flag,
    precise=maybe(_DIFFERENCE),
    processor_note=maybe(text),
    saturates_here=flag,
    saturating_layers=whole,
)
_SETTINGS = table(
    {
        "config": table({"weight_bits": whole, "act_bits": whole}, others=plain),
        "recipe": table({"name": text}, others=plain),
    },
    others=plain,
)
_POINT = table({"average_bits": number}, others=plain)
_MIXED = table(
    {
        "chosen": _POINT,
        "layers": many(table({"bits": whole}, others=plain)),
        "budget": number,
        "measure": text,
    },
    others=plain,
)
_QUALITY = table(
    {
        "agreement": maybe(number),
        "output_sqnr_db": number,
    },
    others=plain,
    trust=maybe(table({"level": text}, others=plain)),
)
_ACCURACY = table({"teacher": number, "student": number, "onnx": number, "data": text}, plain)

check_report = table(
    {
        "model": table({"name": text}, others=plain),
        "settings": _SETTINGS,
        "summary": table({"layers_quantized": whole, "layers_float": whole}, others=plain),
        "size": table({"float_bytes": number, "weights_bytes": number, "onnx_bytes": number}),
        "bitops": table({"float": number, "quantized": number}),
        "quality": _QUALITY,
        "float": many(table({"name": text, "what": text, "reason": text})),
        "parity": _PARITY,
        "accuracy": maybe(_ACCURACY),
        "mixed": maybe(_MIXED),
    },
    others=plain,
)
