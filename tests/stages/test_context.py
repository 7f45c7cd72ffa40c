"""What stages are given: images."""

import pytest
import torch

from vitcompress.stages.context import Context


@pytest.mark.parametrize(("wanted", "sizes"), [(5, [5]), (16, [16]), (20, [16, 4])])
def test_so_many_images_and_no_more(wanted: int, sizes: list[int], context: Context) -> None:
    found = list(context.labelled_batches("reading", wanted))
    assert [len(batch.pixels) for batch in found] == sizes
    assert [name for batch in found for name in batch.names] == context.images.names[:wanted]
    everything = torch.cat(list(context.calibration_batches("reading")))
    assert len(everything) == len(context.images)
    assert torch.equal(torch.cat([batch.pixels for batch in found]), everything[:wanted])
