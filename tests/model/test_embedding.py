"""The width of the stream of tokens, read and changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcompress.errors import InputError
from vitcompress.model.architecture import Architecture, VitModel, build
from vitcompress.model.embedding import (
    embedding_obstacle,
    embedding_width,
    resize_embedding,
    stream_readers,
    writers,
)
from vitcompress.model.sizes import blocks

MakeVit = Callable[..., VitModel]


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2, "init_values": 0.1, "qk_norm": True}])
def test_a_description_with_a_width_makes_the_model_again(
    options: dict[str, Any], make_vit: MakeVit, pixels: Tensor
) -> None:
    architecture = make_vit(**options).architecture.model_copy(update={"embedding": 40})
    module = build(architecture)
    assert embedding_width(module) == 40
    assert not any(
        64 in p.shape for n, p in module.named_parameters() if "attn.proj.weight" not in n
    )
    assert [block.attn.proj.weight.shape for block in blocks(module)] == [(40, 64)] * 2
    for parameter in module.parameters():
        parameter.normal_(0, 0.2)
    again = build(Architecture.model_validate_json(architecture.model_dump_json()))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(pixels), module(pixels))


def test_every_tensor_with_the_width_is_written_or_read(vit: VitModel) -> None:
    resize_embedding(vit.module, 40)
    known = {id(writer.value) for writer in writers(vit.module)}
    for _, norm, layers in stream_readers(vit.module):
        known |= {id(norm.weight), id(norm.bias), *(id(layer.weight) for layer in layers)}
    with_width = {id(p) for p in vit.module.parameters() if 40 in p.shape}
    assert with_width == known


def test_a_stream_that_cannot_be_resized_is_refused(make_vit: MakeVit) -> None:
    vit = make_vit(global_pool="max")
    assert embedding_obstacle(vit.module) == "its pooling (max) is not linear"
    with pytest.raises(InputError, match=r"does not allow what is said of embedding: its pooling"):
        build(vit.architecture.model_copy(update={"embedding": 40}))
