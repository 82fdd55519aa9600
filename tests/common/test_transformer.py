"""Parts of transformers against torch's and MONAI's own, with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.backbones.swin import Swin, WindowBlock
from common.transformer import (
    Attention,
    Block,
    DropPath,
    add_prompts,
    patches_of,
    positions,
    volumes_of,
)

EDGES = st.tuples(*[st.integers(1, 4)] * 3)


def copied(one: nn.Module, other: nn.Module) -> None:
    one.load_state_dict(dict(zip(one.state_dict(), other.state_dict().values(), strict=True)))


@given(st.tuples(*[st.integers(4, 9)] * 3), EDGES, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_patches_hold_every_voxel_once_and_go_back_to_their_place(
    shape: tuple[int, int, int], patch: tuple[int, int, int], seed: int
) -> None:
    """A voxel in the wrong patch would be learnt as anatomy."""
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed)) + 1
    patches = patches_of(x, patch)
    assert torch.equal(volumes_of(patches, shape, patch), x)
    assert (patches > 0).sum() == x.numel()
    first = x[0, : patch[0], : patch[1], : patch[2]]
    assert torch.equal(patches[0, 0], first.flatten())


def test_a_block_is_torchs_encoder_layer_with_the_norm_first() -> None:
    """The oracle of a transformer block is the one that everybody uses."""
    torch.manual_seed(0)
    ours = Block(24, 4, 48, bias=True)
    theirs = nn.TransformerEncoderLayer(
        24, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    renamed = {
        "self_attn.in_proj_": "attention.look.", "self_attn.out_proj": "attention.out",
        "linear1": "feed_forward.0", "linear2": "feed_forward.3",
        "norm1": "before_attention", "norm2": "before_feed_forward",
    }  # fmt: skip
    state = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in renamed.items():
            name = name.replace(old, new)  # noqa: PLW2901
        state[name] = tensor
    ours.load_state_dict(state)
    x = torch.randn(3, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("moved", [False, True])
def test_a_block_of_windows_is_monais(moved: bool) -> None:
    """Windows, their move by half, and who may not look across the volume's end."""
    from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask

    torch.manual_seed(0)
    keys = Swin.Settings(name="swin", width=12, depths=(2,), heads=(3,), window=(4, 3, 2))
    ours = WindowBlock(12, 3, keys, moved=moved, drop_path=0.0)
    shift = (2, 1, 1) if moved else (0, 0, 0)
    theirs = SwinTransformerBlock(12, 3, (4, 3, 2), shift)
    state, mine = theirs.state_dict(), {}
    for new, old in {
        "before_attention": "norm1", "attention.look": "attn.qkv", "attention.out": "attn.proj",
        "before_feed_forward": "norm2", "feed_forward.0": "mlp.linear1",
        "feed_forward.3": "mlp.linear2",
    }.items():  # fmt: skip
        for end in ("weight", "bias"):
            mine[f"{new}.{end}"] = state[f"{old}.{end}"]
    mine["bias.relative"] = state["attn.relative_position_bias_table"]
    ours.load_state_dict(mine)
    x = torch.randn(2, 7, 6, 5, 12)  # padded along the first and the last axis
    mask = compute_mask([8, 6, 6], (4, 3, 2), shift, "cpu") if moved else None
    torch.testing.assert_close(ours(x), theirs(x, mask), rtol=1e-4, atol=1e-5)


def test_a_window_larger_than_the_volume_lets_all_look_at_all() -> None:
    """Coarse volumes have fewer tokens than a published window; relative places stay true."""
    keys = Swin.Settings(name="swin", width=8, depths=(2,), heads=(2,), window=(8, 7, 7))
    torch.manual_seed(0)
    block = WindowBlock(8, 2, keys, moved=True, drop_path=0.0)
    x = torch.randn(1, 3, 4, 2, 8)
    far = x.clone()
    far[0, 2, 3, 1, 0] += 5.0
    changed = (block(far) - block(x)).abs().sum(-1)[0]
    assert (changed > 1e-4).all()


def test_dropping_a_path_keeps_the_mean_and_rests_when_judging() -> None:
    """A sample keeps all of a branch, scaled, or none of it."""
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3)
    found = drop.train()(x)
    assert found.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(found[:, 0], found[:, 2])
    assert found.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("biased", [False, True])
def test_prompts_are_looked_at_as_tokens_that_are_dropped_behind_the_block(biased: bool) -> None:
    """Visual prompts in every block are just that (Jia et al. 2022)."""
    torch.manual_seed(0)
    attention = Attention(16, 4, bias=True)
    x = torch.randn(2, 5, 16)
    bias = torch.randn(1, 4, 5, 5) if biased else None
    (named,) = add_prompts(attention, 3)
    assert named == ".prompts"
    prompts = attention.prompts
    assert prompts is not None
    attention.prompts = None
    whole = torch.cat([x, prompts.expand(2, -1, -1)], 1)
    wide = None if bias is None else nn.functional.pad(bias, (0, 3, 0, 3))
    oracle = attention(whole, wide)[:, :5]
    attention.prompts = prompts
    torch.testing.assert_close(attention(x, bias), oracle, rtol=1e-5, atol=1e-6)


def test_positions_are_drawn_small_and_never_far() -> None:
    """A normal of sd 0.02 that is cut at two of them."""
    torch.manual_seed(0)
    drawn: Any = positions(200, 50).detach()
    assert drawn.abs().max() <= 0.04
    assert drawn.std().item() == pytest.approx(0.0176, abs=0.001)
