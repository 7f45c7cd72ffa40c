from vitcompress.details import Column, Fact, Table
from vitcompress.report.details import charts, numeric, peak, stage_facts
from vitcompress.report.model import Report


def test_facts_of_studies_follow_those_of_the_stage(report: Report) -> None:
    assert stage_facts(report.stages[1].details) == [
        ("score", "lrp"),
        ("group_size", None),
        ("simulated.note", "not exported"),
        ("simulated.inputs", "4 bits"),
        ("simulated.images", 1000),
        ("simulated.top1", 80.5),
    ]


def test_columns_are_those_of_all_rows() -> None:
    rows: list[dict[str, Fact]] = [{"step": 1, "kl": -0.5}, {"step": 2, "note": "last"}]
    table = Table.of("steps", rows, charted={"kl": ""})
    assert table.columns == (Column("step"), Column("kl", chart=True), Column("note"))
    assert [numeric(table, column) for column in table.columns] == [True, True, False]
    assert peak(table, table.columns[1]) == 0.5


def test_layers_are_charted_by_block_and_kind() -> None:
    rows: list[dict[str, Fact]] = [
        {"layer": "blocks.0.attn.qkv", "output_error": 0.1, "bits": 8},
        {"layer": "blocks.0.mlp.fc1", "output_error": 0.2, "bits": 8},
        {"layer": "blocks.1.mlp.fc1", "output_error": 0.3, "bits": 8},
        {"layer": "layers.2.blocks.5.attn.qkv", "output_error": 0.4, "bits": 8},
        {"layer": "patch_embed.proj", "output_error": 0.5, "bits": 8},
        {"layer": "head.0", "output_error": None, "bits": 8},
        {"layer": "head.2", "output_error": 0.6, "bits": 8},
    ]
    (chart,) = charts(Table.of("layers", rows, charted={"output_error": "", "bits": ""}))
    assert chart.column.name == "output_error"  # bits do not vary
    assert chart.groups == ["0", "1", "2.5", "patch_embed", "head.0", "head.2"]
    assert chart.values == {
        "qkv": [0.1, None, 0.4, None, None, None],
        "fc1": [0.2, 0.3, None, None, None, None],
        "": [None, None, None, 0.5, None, 0.6],
    }
    assert not list(charts(Table.of("layers", rows)))


def test_names_that_fall_together_are_not_charted() -> None:
    rows = [{"layer": f"blocks.0.{side}.fc", "error": n} for n, side in enumerate("ab")]
    assert not list(charts(Table.of("layers", rows, charted={"error": ""})))


def test_what_parts_would_cost_is_charted() -> None:
    rows = [
        {"structure": f"blocks.{i}.{kind}", "size": 64, "kl_less_50%": 0.1 * i}
        for i in range(3)
        for kind in ("value", "hidden")
    ]
    (chart,) = charts(Table.of("sensitivities", rows, charted={"kl_less_50%": ""}))
    assert (chart.groups, list(chart.values)) == (["0", "1", "2"], ["value", "hidden"])
