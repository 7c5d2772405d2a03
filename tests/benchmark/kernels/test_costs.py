"""Bytes and FLOPs against numbers that were counted by hand."""

from __future__ import annotations

import torch

from specdecodes.benchmark.kernels import costs
from specdecodes.benchmark.kernels.costs import Cost, Widths
from specdecodes.benchmark.shapes import SHAPES, AttentionSizes, DeltaSizes, Mamba2Sizes, S6Sizes

BF16 = Widths.of(torch.bfloat16)
F32 = Widths.of(torch.float32)
MAMBA2 = Mamba2Sizes(heads=4, head_dim=8, groups=2, state_dim=16, taps=4, layers=3)
SHARED = Mamba2Sizes(heads=4, head_dim=16, groups=4, state_dim=16, taps=4, layers=3, shared=2)


def test_widths() -> None:
    assert (Widths(2, 4), Widths(4, 4)) == (BF16, F32)
    assert Widths.of(torch.float64) == Widths(8, 8)


def test_mamba2_tree_of_the_8b() -> None:
    """The count of kernels/mamba2_scan/README.md: S, x and B and C, step sizes, ancestors, y."""
    cost = costs.mamba2_tree(SHAPES["mamba-in-llama-8b"].sizes[Mamba2Sizes], 13, BF16)
    assert cost.bytes == 2_097_152 + 3 * 106_496 + 1_664 + 169 + 212_992 == 2_631_465
    assert cost == Cost(2_631_465, 2 * (169 * (4096 + 4096) + 13 * 4096 * 128))


def test_mamba2_tree() -> None:
    # S 4*8*16*4; x 3*32*4, B and C 2*3*32*4; steps 3*4*4; ancestors 9; y 3*32*4
    assert costs.mamba2_tree(MAMBA2, 3, F32).bytes == 2048 + 384 + 768 + 48 + 9 + 384
    assert costs.mamba2_tree(MAMBA2, 3, F32).flops == 2 * (9 * (32 + 32) + 3 * 512)


def test_mamba2_step() -> None:
    assert costs.mamba2_step(MAMBA2, BF16) == Cost(2 * 2048 + (32 + 32 + 64) * 2 + 16, 2048)


def test_mamba2_commit() -> None:
    """S alone is the 64 MiB of the README; heads in pairs share x and B."""
    big = costs.mamba2_commit(SHAPES["mamba-in-llama-8b"].sizes[Mamba2Sizes], 4, BF16)
    # windows 6144 * 4, raw inputs 6144 and 32 step sizes per node, five numbers per channel of x and B (2048)
    assert big.bytes == 64 * 2**20 + 16 * (2 * 6144 * 4 * 2 + 4 * 6176 * 2 + 5 * 2048 * 2)
    # x 64 / 2 and B 64 / 2 channels, C 64: 128 in all; S 4 * 16 * 16
    assert costs.mamba2_commit(SHARED, 2, F32) == Cost(
        3 * (2 * 1024 * 4 + 2 * 128 * 4 * 4 + 2 * 132 * 4 + 5 * 64 * 4), 3 * 2 * 2 * (1024 + 4 * 64), launches=2
    )


def test_a_replay_that_is_part_of_scan_and_conv() -> None:
    tree, conv = costs.mamba2_tree(SHARED, 3, F32), costs.tree_conv(SHARED, 3, BF16)
    # S 1024 written; x and B 64 and 4 step sizes of 2 nodes
    found = costs.mamba2_replay_tree(SHARED, 3, 2, F32)
    assert found == Cost(tree.bytes + 1024 * 4 + 2 * (64 * 4 + 4 * 4), tree.flops + 2 * 2 * 1024)
    # 128 channels: window 4 written, inputs and outputs of 2 nodes
    assert costs.replay_conv(SHARED, 3, 2, BF16) == Cost(conv.bytes + 8 * 128 * 2, conv.flops + 2 * 2 * 128 * 4)
    # 3 layers, 2 nodes: 128 inputs in and out, 4 step sizes from bfloat16 to float32
    assert costs.mamba2_defer(SHARED, 2, BF16) == Cost(3 * 2 * (2 * 128 * 2 + 4 * 6), 0, launches=7)


def test_tree_conv() -> None:
    # channels 32 + 2 * 32 = 96: inputs 3, window 4, weights 4 + 1, outputs 3; 12 places
    assert costs.tree_conv(MAMBA2, 3, BF16) == Cost(15 * 96 * 2 + 12 * 8, 2 * 3 * 96 * 4)


def test_gated_delta_tree() -> None:
    sizes = DeltaSizes(heads=2, key_dim=8, value_dim=16, channels=64, taps=4, layers=1)
    # per head: S 128, q and k and g and y and u of 3 nodes in float32; v and beta in bfloat16; ancestors
    assert costs.delta_tree(sizes, 3, BF16).bytes == 2 * (128 + 3 * (8 + 8 + 1 + 16 + 16)) * 4 + 2 * 3 * 17 * 2 + 9
    # per head: 2 * 9 * 8 between nodes, 2 * 3 * 128 with S, 1.5 * 9 * 16 for the solve and the outputs
    assert costs.delta_tree(sizes, 3, BF16).flops == 2 * 2 * (144 + 768 + 216)


def test_kimi_delta_tree() -> None:
    sizes = DeltaSizes(heads=2, key_dim=8, value_dim=8, channels=48, taps=4, layers=1, per_channel=True)
    assert costs.delta_tree(sizes, 3, F32).bytes == 2 * (64 + 3 * (8 + 8 + 8 + 8 + 8)) * 4 + 2 * 3 * 9 * 4 + 9
    # decays of 9 pairs: an exponential and a product per key channel, as much as one product of keys
    assert costs.delta_tree(sizes, 3, F32).flops == 2 * 2 * (9 * 8 * 3 + 2 * 3 * 64 + 108)


def test_delta_commit() -> None:
    """What the README of kernels/gated_delta counts; and a decay per key channel."""
    big = costs.delta_commit(SHAPES["qwen3-next"].sizes[DeltaSizes], 4, BF16)
    assert big.bytes == 9 * (4_194_304 + 131_072 + 65_536 + 32_768 + 65_536 + 512) == 40_407_552
    sizes = DeltaSizes(heads=2, key_dim=8, value_dim=16, channels=64, taps=4, layers=3, per_channel=True)
    # S 2 * 128, windows 64 * 4, raw inputs 64 and keys 16, corrections 32 and decays 16 of two nodes
    assert costs.delta_commit(sizes, 2, BF16) == Cost(
        3 * (2 * 256 * 4 + 2 * 256 * 2 + 2 * (64 + 16) * 2 + 2 * (32 + 16) * 4), 3 * 2 * 2 * 256, launches=2
    )


def test_s6_tree() -> None:
    sizes = S6Sizes(channels=32, state_dim=4, taps=4, layers=1)
    # S and A; x, y and steps; B, C and parents
    assert costs.s6_tree(sizes, 3, BF16) == Cost(2 * 128 * 4 + 3 * 32 * (2 + 2 + 4) + 3 * (8 * 2 + 8), 7 * 3 * 128)


def test_linear() -> None:
    assert costs.linear([(10, 4), (6, 8)], 3, F32) == Cost((40 + 48 + 3 * 28) * 4, 2 * 3 * (40 + 48), launches=2)


def test_kv_gather() -> None:
    sizes = AttentionSizes(heads=8, kv_heads=2, head_dim=16, layers=3)
    assert costs.kv_gather(sizes, 4, BF16) == Cost(3 * 2 * 2 * 4 * 32 * 2 + 32, 0, launches=3)


def test_tree_attention() -> None:
    sizes = AttentionSizes(heads=8, kv_heads=2, head_dim=16, layers=3)
    # keys and values of 103 positions, queries and outputs of 3 nodes, 9 bytes of mask
    moved = (2 * 103 * 32 + 2 * 3 * 128) * 2 + 9
    assert costs.tree_attention(sizes, 3, 100, BF16) == Cost(moved, 4 * 3 * 128 * 103, launches=2)
