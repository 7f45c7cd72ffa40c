"""What stages are given: images, and a cache that is a convenience only."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from vitcompress.stages.context import Context

MakeContext = Callable[..., Context]


@pytest.mark.parametrize(("wanted", "sizes"), [(5, [5]), (16, [16]), (20, [16, 4])])
def test_so_many_images_and_no_more(wanted: int, sizes: list[int], context: Context) -> None:
    found = list(context.labelled_batches("reading", wanted))
    assert [len(batch.pixels) for batch in found] == sizes
    assert [name for batch in found for name in batch.names] == context.images.names[:wanted]
    everything = torch.cat(list(context.calibration_batches("reading")))
    assert len(everything) == len(context.images)
    assert torch.equal(torch.cat([batch.pixels for batch in found]), everything[:wanted])


def test_the_few_newest_files_of_a_kind_stay(context: Context) -> None:
    for number in range(6):
        for kind in ("one", "other"):
            context.keep(context.cache / f"{kind}-{number}.json", Path.touch)
    assert len(list(context.cache.glob("one-*"))) == len(list(context.cache.glob("other-*"))) == 4


def test_latencies_are_kept_for_later(make_context: MakeContext) -> None:
    with make_context().latencies() as table:
        table.grids["a branch"] = [1.0]
    with make_context().latencies() as again:
        assert again.grids == {"a branch": [1.0]}
    with make_context(resume=False).latencies() as fresh:
        assert fresh.grids == {}

    def interrupted() -> None:
        with make_context().latencies() as table:
            table.grids["another"] = [2.0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with make_context().latencies() as again:
        assert set(again.grids) == {"a branch", "another"}


def test_tensors_that_cannot_be_written_are_only_said(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Path) -> None:
        raise SafetensorError("no space left")

    context.keep(context.cache / "calibration-key.safetensors", full)
    assert "calibration-key.safetensors is not kept: no space left" in capsys.readouterr().err


def test_latencies_that_cannot_be_kept_are_only_said(
    make_context: MakeContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with make_context(cache=tmp_path / "file" / "cache").latencies() as table:
        table.grids["a branch"] = [1.0]
    assert "is not kept" in capsys.readouterr().err
