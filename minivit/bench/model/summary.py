"""From the records of a model run to its row: speed-up, Amdahl's ceiling, classes that change, and its status.

Attention is a small part of a Vision Transformer (4 N / (24 D + 4 N) of its FLOPs, 4% of ViT-B at 197 tokens), so a
kernel that is twice as fast changes little. Amdahl's law (1967) gives the limit: the ceiling is the gain of an
attention that takes no time. A gain beyond it means that something other than attention changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from minivit.bench.checks.tolerance import SLACK
from minivit.bench.report.results import SCHEMA, Record
from minivit.bench.timing.stats import interval
from minivit.bench.timing.summary import MAX_NOISY, TRUST, Series, ratios_to_both, resolution_of

ARMS = ("default", "again", "kernel")


def ceiling(fraction: float) -> float:
    """Return the gain of the whole (Amdahl) if a part that takes this fraction of it takes no time."""
    return 1 / (1 - fraction)


def predicted(fraction: float, speedup: float) -> float:
    """Return the gain of the whole if that part becomes `speedup` times as fast."""
    return 1 / (1 - fraction + fraction / speedup)


def model_row(records: Iterable[Record]) -> Record:
    """Return the record of kind "model", from the records of a run."""
    every = list(records)
    head = next(record for record in every if record["kind"] == "model-bench")
    errors = next(record for record in every if record["kind"] == "model-errors")
    blocks = [record for record in every if record["kind"] == "model-block"]
    kept = [record for record in blocks if record["kept"]]
    series = {arm: Series([record for record in kept if record["arm"] == arm]) for arm in ARMS}
    rates = {
        arm: sorted(head["batch"] * 1e6 / rate for rate in (median(one.medians.values()), *interval_of(one)))
        for arm, one in series.items()
    }
    resolution = resolution_of(series["default"], series["again"])
    gains = ratios_to_both((series["default"], series["again"]), series["kernel"])
    gain = median(gains.values())
    gain_low, gain_high = interval(series["default"].by_process(gains))
    attention = {arm: _attention(series[arm]) for arm in ARMS}
    fraction = median([*_fractions(series["default"]), *_fractions(series["again"])])
    top = ceiling(fraction)
    speedup = median([attention["default"], attention["again"]]) / attention["kernel"]
    flips = [
        {
            "picture": head["pictures"][i],
            "default": default,
            "kernel": kernel,
            "margin": errors["margins"][i],
            "explained": errors["margins"][i] <= 2 * SLACK * errors["yardstick"],
        }
        for i, (default, kernel) in enumerate(errors["top1"])
        if default != kernel
    ]
    starts = [record for record in every if record["kind"] == "model-start"]
    row = {
        "schema": SCHEMA,
        "kind": "model",
        "kernel": head["kernel"],
        "model": head["model"],
        "status": "",
        "detail": "",
        "images_per_second": rates["kernel"],
        "default_images_per_second": rates["default"],
        "gain": gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
        "resolution": resolution,
        "attention_share": fraction,
        "attention_speedup": speedup,
        "predicted_gain": predicted(fraction, speedup),
        "ceiling": top,
        "reached": (gain - 1) / (top - 1),
        "first_forward_seconds": {r["arm"]: r["first_forward_seconds"] for r in starts if r["process"] == 0},
        "peak_bytes": {r["arm"]: r["peak_bytes"] for r in starts if r["process"] == 0},
        "logits": errors["finding"],
        "blocks": errors["blocks"],
        "pictures": len(errors["top1"]),
        "top1_agreement": 1 - len(flips) / len(errors["top1"]),
        "top5_agreement": sum(errors["top5_agree"]) / len(errors["top5_agree"]),
        "flips": flips,
    }
    row["status"], row["detail"] = _trust(row, blocks, head)
    return row


def interval_of(series: Series) -> tuple[float, float]:
    """Return the 95% interval of the median of a series, in microseconds."""
    return interval(series.by_process(series.medians))


def _fractions(series: Series) -> list[float]:
    """Return the fraction of the forward pass that is attention, for every sample."""
    pairs = [pair for block in series.blocks for pair in zip(block["attention_us"], block["samples_us"], strict=True)]
    return [attention / total for attention, total in pairs]


def _attention(series: Series) -> float:
    """Return the microseconds of attention in a forward pass."""
    return median(one for block in series.blocks for one in block["attention_us"])


def _trust(row: Record, blocks: Sequence[Record], head: Record) -> tuple[str, str]:
    """Return the status of the row, a word of timing.summary.TRUST, and the reason."""
    if row["logits"]["status"] == "fail":
        return "failed", row["logits"]["detail"]
    if unexplained := [flip for flip in row["flips"] if not flip["explained"]]:
        return "failed", f"{len(unexplained)} pictures change their class by more than rounding explains"
    if wrong := [block for block in blocks if block["status"] == "fail"]:
        return "invalid", f"{len(wrong)} of {len(blocks)} timed answers looked at are wrong: {wrong[0]['detail']}"
    if row["gain_low"] > row["ceiling"] * (1 + (row["resolution"] or 0)):
        return "invalid", f"a gain of {row['gain']:.3f} is above the ceiling of {row['ceiling']:.3f}"
    if head["unverified"]:
        return "unverified", TRUST["unverified"]
    kept = [block for block in blocks if block["kept"]]
    disturbed = [block["noise"] for block in kept if block["noise"]]
    if len(disturbed) > MAX_NOISY * len(kept):
        return "noisy", f"{len(disturbed)} of {len(kept)} blocks, for one: {disturbed[0]}"
    return "verified", ""
