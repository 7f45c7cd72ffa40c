import pytest

from vitcompress.report import format as fmt


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (fmt.size(22_913_024), "22.9 MB"),
        (fmt.size(6_174_211), "6.17 MB"),
        (fmt.size(999_999), "1.00 MB"),
        (fmt.size(12), "12 B"),
        (fmt.size(1_215_000_000), "1.22 GB"),
        (fmt.count(1_258_000_000), "1.26 G"),
        (fmt.count(5_717_416), "5.72 M"),
        (fmt.count(192), "192"),
        (fmt.macs(1_254_000_000), "1.25 GMACs"),
        (fmt.value(185_300_000, "macs"), "185 MMACs"),
        (fmt.value(5_717_416, "parameters"), "5.72 M"),
        (fmt.value(99.2, "top1"), "99.2 %"),
        (fmt.percent(98.6), "98.6 %"),
        (fmt.percent(99.97), "99.97 %"),
        (fmt.percent(99.9999), "99.9999 %"),
        (fmt.percent(100.0), "100.0 %"),
        (fmt.similarity(0.98765), "0.9877"),
        (fmt.similarity(0.99996), "0.999960"),
        (fmt.similarity(1 - 7.4e-13), "1 − 7e−13"),
        (fmt.similarity(1.0), "1.0000"),
        (fmt.similarity(-0.5), "−0.5000"),
        (fmt.points(-0.2), "−0.2 points"),
        (fmt.points(86.2 - 86.4), "−0.2 points"),
        (fmt.points(-0.04), "−0.04 points"),
        (fmt.points(0.31), "+0.3 points"),
        (fmt.points(0.0), "0.0 points"),
        (fmt.relative(-0.7305), "−73 %"),
        (fmt.relative(0.031), "+3.1 %"),
        (fmt.relative(0.0), "0 %"),
        (fmt.milliseconds(12.34), "12.3 ms"),
        (fmt.milliseconds(0.674), "0.674 ms"),
        (fmt.milliseconds(9.999), "10.0 ms"),
        (fmt.milliseconds(1234.5), "1,234 ms"),
        (fmt.seconds(59.96), "1 min 00 s"),
        (fmt.seconds(3900), "1 h 05 min"),
        (fmt.roughly(35.1), "35 s"),
        (fmt.roughly(250.0), "4 min"),
        (fmt.roughly(3900.0), "1 h 05 min"),
        (fmt.nats(0.00213), "0.0021"),
        (fmt.times(2.411), "2.41×"),
        (fmt.ratio(0.012), "0.0120"),
        (fmt.ratio(0.0), "0.00"),
        (fmt.span("29.7 ms", "11.2 ms"), "29.7 → 11.2 ms"),
        (fmt.span("1.02 MB", "812 kB"), "1.02 MB → 812 kB"),
        (fmt.span(fmt.DASH, "11.2 ms"), "– → 11.2 ms"),
        (fmt.value(True), "yes"),
        (fmt.value([1, 0.25, None]), "1, 0.25, –"),
        (fmt.value({"macs": 0.75, "peak_bytes": 22_900_000}), "MACs 0.75, peak bytes 22.9 MB"),
        (fmt.value([]), "–"),
    ],
)
def test_a_number_is_written_for_people(text: str, wanted: str) -> None:
    assert text == wanted


@pytest.mark.parametrize(
    "write",
    [
        fmt.size, fmt.count, fmt.macs, fmt.whole, fmt.percent,
        fmt.points, fmt.relative, fmt.milliseconds,
        fmt.seconds, fmt.nats, fmt.times, fmt.ratio, fmt.number, fmt.value,
    ],
)  # fmt: skip
def test_what_was_not_measured_is_a_dash(write: fmt.Formatter) -> None:
    assert write(None) == "–"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ([], ""),
        (["head"], "head"),
        (["blocks.3.attn.qkv"], "blocks.3.attn.qkv"),
        (
            [f"blocks.{n}.{kind}" for n in range(12) for kind in ("attn.qkv", "mlp.fc1")],
            "blocks.0-11.attn.qkv (12), blocks.0-11.mlp.fc1 (12)",
        ),
        ([f"b.{n}" for n in (0, 2, 1, 5, 7, 8)], "b.0-2,5,7-8 (6)"),
        (
            [f"layers.{s}.blocks.{n}.fc1" for s in (0, 1) for n in (0, 1)],
            "layers.0.blocks.0-1.fc1 (2), layers.1.blocks.0-1.fc1 (2)",
        ),
        (["head.0", "norm", "head.2"], "head.0,2 (2), norm"),
    ],
)
def test_names_that_differ_in_a_number_are_folded(names: list[str], wanted: str) -> None:
    assert fmt.folded(names) == wanted
