"""A small report with every kind of thing in it."""

from vitcompress.details import Gallery, Pictures, Table
from vitcompress.report.model import (
    Artifact,
    Details,
    GateResult,
    Interval,
    Latency,
    Made,
    Metrics,
    Report,
    StageReport,
    StudyReport,
)

PICTURE = "data:image/png;base64,AA"

LAYERS = [
    {
        "layer": f"blocks.{block}.{name}",
        "bits": 8,
        "activations": "static",
        "scale_alpha": None if name == "attn.proj" else 0.5,
        "weight_error": 0.004,
        "output_error": 0.01 * (block + 1) + place / 1000,
    }
    for block in range(3)
    for place, name in enumerate(("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))
]


CHARTED = {"bits": "", "output_error": "Squared error"}


def full_report() -> Report:
    """Quantized, every figure measured, all gates passed."""
    final = Metrics(
        images=1000,
        top1=86.2,
        top5=97.1,
        agreement=98.6,
        kl=0.0021,
        params=5_717_416,
        macs=1_258_000_000,
        bytes=6_174_211,
        latency_ms=Latency(p50=11.2, p90=11.9, p99=13.4),
        speedup=2.652,
        intervals={
            "top1": Interval.of(86.2, 1000),
            "top5": Interval.of(97.1, 1000),
            "agreement": Interval.of(98.6, 1000),
        },
    )
    return Report(
        model={"name": "deit_tiny_patch16_224", "num_classes": 1000},
        baseline=Metrics(
            images=1000,
            top1=86.4,
            top5=97.3,
            params=5_717_416,
            macs=1_258_000_000,
            bytes=22_913_024,
            latency_ms=Latency(p50=29.7, p90=31.2, p99=35.0),
            speedup=1.0,
        ),
        stages=[
            StageReport(
                name="calibrate",
                type="calibrate",
                seconds=41.2,
                details=Details(facts={"images": 256}),
            ),
            StageReport(
                name="quant",
                type="quantize",
                seconds=18.7,
                metrics=final.model_copy(update={"bytes": None, "latency_ms": None}),
                details=Details(
                    facts={"score": "lrp", "group_size": None},
                    tables=(Table.of("layers", LAYERS, CHARTED),),
                    galleries=(
                        Gallery("relevance", ("before",), (Pictures("0.jpg", (PICTURE,)),)),
                    ),
                    studies=(
                        StudyReport(
                            name="simulated",
                            note="not exported",
                            facts={"inputs": "4 bits"},
                            figures=Metrics(images=1000, top1=80.5),
                        ),
                    ),
                ),
            ),
        ],
        final=final,
        artifacts=[
            Artifact(
                path="model.onnx",
                bytes=6_174_211,
                sha256="4be1" * 16,
                parity={"passed": True, "worst_layer": "blocks.2.mlp.fc2"},
            ),
            Artifact(path="config.json", bytes=18_422, sha256="00cd" * 16),
        ],
        gates=[
            GateResult(name="max_drop.top1", limit=1.0, value=0.2, passed=True),
            GateResult(name="max_ratio.bytes", limit=0.4, value=0.2695, passed=True),
        ],
        environment={"onnxruntime": "1.32.0", "threads": 1},
        warnings=["2 images could not be read"],
        made=Made(recipe="vit-int8", command="vitcompress run vit-int8", date="2026-11-27T23:41Z"),
    )
