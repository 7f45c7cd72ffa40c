from vitcompress.report.details import sections


def test_shapes_not_names_decide() -> None:
    found = sections(
        {
            "saliency": "hessian",
            "budget": {"macs": 0.75},
            "widths": [768, 700, 512, 600],
            "heads": [3, 3, 3, 3],
            "bits": {f"blocks.{i}.attn.qkv": 4 + i % 2 for i in range(12)},
            "steps": [{"step": 1, "loss": {"kl": 0.5}}, {"step": 2, "note": "last"}],
        }
    )
    assert found.facts == [
        ("saliency", "hessian"),
        ("budget.macs", 0.75),
        ("heads", [3, 3, 3, 3]),
    ]
    bits, steps = found.tables
    assert (bits.columns, len(bits.rows)) == (["layer", "bits"], 12)
    assert steps.columns == ["step", "loss.kl", "note"]
    assert steps.numeric("loss.kl")
    assert not steps.numeric("note")
    assert [chart.column for chart in found.charts] == ["widths", "bits"]


def test_layers_are_charted_by_block_and_kind() -> None:
    rows = [
        {"layer": "blocks.0.attn.qkv", "output_error": 0.1},
        {"layer": "blocks.0.mlp.fc1", "output_error": 0.2},
        {"layer": "blocks.1.mlp.fc1", "output_error": 0.3},
        {"layer": "layers.2.blocks.5.attn.qkv", "output_error": 0.4},
        {"layer": "head", "output_error": None},
    ]
    (chart,) = sections({"layers": rows}).charts
    assert chart.groups == ["0", "1", "2.5", "head"]
    assert chart.values == {
        "qkv": [0.1, None, 0.4, None],
        "fc1": [0.2, 0.3, None, None],
        "": [None, None, None, None],
    }


def test_names_that_fall_together_are_not_charted() -> None:
    rows = [{"layer": f"blocks.0.{side}.fc", "output_error": n} for n, side in enumerate("ab")]
    found = sections({"layers": rows})
    assert not found.charts
    assert len(found.tables) == 1


def test_pictures_make_a_gallery() -> None:
    rows = [{"image": f"{n}.jpg", "before": "data:image/png;base64,AA", "n": n} for n in range(2)]
    found = sections({"relevance": rows})
    (gallery,) = found.galleries
    assert gallery.name == "relevance"
    assert gallery.columns == ["before"]
    assert gallery.rows[1] == ("1.jpg 1", ["data:image/png;base64,AA"])
    assert not found.tables


def test_what_parts_would_cost_is_charted() -> None:
    rows = [
        {"structure": f"blocks.{i}.{kind}", "size": 64, "kl_less_50%": 0.1 * i, "kl_less_75%": 1.0}
        for i in range(3)
        for kind in ("value", "hidden")
    ]
    (chart,) = sections({"layers": rows}).charts
    assert (chart.column, chart.groups, list(chart.values)) == (
        "kl_less_50%",
        ["0", "1", "2"],
        ["value", "hidden"],
    )
