"""The Mamba-2 recurrence over a tree and along a path as Triton kernels; README.md derives the formulas.

Letters: B rows, T nodes, H heads, P head dim, G groups, N state dim, D path length, W conv taps, L layers.
Names: ``i_`` program ids, ``o_`` offsets, ``p_`` pointers, ``b_`` tiles. Program ids that stand for rows, heads and
layers are int64, so that no product with a stride overflows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdecodes.kernels.causal_conv.triton import jump_windows_
from specdecodes.kernels.native import rows as dense_rows
from specdecodes.kernels.tiles import finite, log_decay, path_length, power, reaches, tile

BLOCK_P = 32
"""Rows of the state per program: enough programs to fill a GPU with one batch row, few enough to share C and B."""
BLOCK_N = 32
"""State dims that a product takes at once: operands lie in registers, three times each in float32."""

STATE_TILE = 2048
"""Elements of the state that a program of a jump holds in registers."""


def scan_config(count: int, head_dim: int, state_dim: int, dtype: torch.dtype) -> dict[str, int | str]:
    """How :func:`tree_scan_kernel` runs: the largest row tile that pads T no further than to the next 16."""
    padded = -(-count // 16) * 16
    precision = "tf32x3" if dtype == torch.float32 else "tf32"
    # 64 nodes fit the registers only where products take N in several steps and are not split.
    sizes = (64, 32, 16) if precision == "tf32" and state_dim > BLOCK_N else (32, 16)
    block_t = next(size for size in sizes if padded % size == 0)
    block_p, block_n = min(BLOCK_P, power(head_dim)), min(BLOCK_N, power(state_dim))
    warps = 8 if block_t == 64 else 4
    return {"BT": block_t, "BP": block_p, "BN": block_n, "PRECISION": precision, "num_warps": warps, "num_stages": 1}


def jump_config(length: int, head_dim: int, state_dim: int) -> dict[str, int]:
    """Tiles of :func:`jump_states_kernel`."""
    block_n = power(state_dim)
    return {"BD": power(length), "BP": min(BLOCK_P, power(head_dim), max(1, STATE_TILE // block_n)), "BN": block_n}


@triton.jit
def _softplus(x: tl.tensor) -> tl.tensor:
    # log(1 + e) loses e where it is small: the quotient by what 1 + e really is puts it back.
    power = tl.exp(tl.minimum(x, 20.0))
    whole = 1.0 + power
    small = tl.where(whole == 1.0, power, tl.log(whole) * (power / tl.where(whole == 1.0, 1.0, whole - 1.0)))
    return tl.where(x > 20.0, x, small)


@triton.jit
def _step_size(p_raw: tl.tensor, p_bias: tl.tensor, HAS_DT_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr) -> tl.tensor:
    step = tl.load(p_raw).to(tl.float32)
    if HAS_DT_BIAS:
        step += tl.load(p_bias).to(tl.float32)
    if SOFTPLUS:
        step = _softplus(step)
    return step


@triton.jit
def _mixed_channels(
    i_h: tl.tensor,
    o_p: tl.tensor,
    o_n: tl.tensor,
    H: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    SHARED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Where head ``i_h`` finds x and B among the conv's channels: SHARED heads, and groups, read the same."""
    return i_h // SHARED * P + o_p, H * P // SHARED + i_h // (H // G * SHARED) * N + o_n


@triton.jit
def tree_scan_kernel(
    p_x: tl.tensor,
    p_dt: tl.tensor,
    p_A: tl.tensor,
    p_B: tl.tensor,
    p_C: tl.tensor,
    p_D: tl.tensor,
    p_state: tl.tensor,
    p_ancestors: tl.tensor,
    p_y: tl.tensor,
    p_path: tl.tensor,
    p_raw: tl.tensor,
    p_length: tl.tensor,
    p_dt_bias: tl.tensor,
    T: int,
    x_row: int,
    x_node: int,
    dt_row: int,
    dt_node: int,
    B_row: int,
    B_node: int,
    C_row: int,
    C_node: int,
    channels: int,
    H: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    SKIP: tl.constexpr,
    M: tl.constexpr,
    SHARED: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    BT: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Of one batch row and head, BP channels of y for all nodes, BT at a time.

    With M > 0 a path of at most M nodes is pending: BP rows of the state are moved along it first, BN numbers of each
    at a time. Nobody else reads them.
    """
    i_p, i_h, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_g = i_h // (H // G)
    o_p, o_n, o_t = i_p * BP + tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, BT)
    in_p = o_p < P
    p_x += i_b * x_row + i_h * P
    p_y += (i_b * T * H + i_h) * P
    p_dt += i_b * dt_row + i_h
    p_B += i_b * B_row + i_g * N
    p_C += i_b * C_row + i_g * N
    p_ancestors += i_b * T * T
    p_state += (i_b * H + i_h) * P * N
    rate = tl.load(p_A + i_h).to(tl.float32)
    if M > 0:
        o_x, o_B = _mixed_channels(i_h, o_p, o_n, H, P, G, N, SHARED)
        p_path += i_b * M * channels
        p_raw += i_b * M * H + i_h
        length = tl.load(p_length + i_b).to(tl.int32)
        for n in range(0, N, BN):
            in_n = o_n < N - n
            in_state = in_p[:, None] & in_n[None, :]
            p_tile = p_state + o_p[:, None] * N + n + o_n[None, :]
            b_state = tl.load(p_tile, mask=in_state, other=0.0)
            for d in range(0, length):
                step = _step_size(p_raw + d * H, p_dt_bias + i_h, HAS_DT_BIAS, SOFTPLUS)
                b_x = tl.load(p_path + d * channels + o_x, mask=in_p, other=0.0).to(tl.float32)
                b_B = tl.load(p_path + d * channels + o_B + n, mask=in_n, other=0.0).to(tl.float32)
                b_state = b_state * tl.exp(step * rate) + (step * b_x)[:, None] * b_B[None, :]
            tl.store(p_tile, b_state, mask=in_state)
        tl.debug_barrier()  # other threads of this program read below what this one has written
    for first in range(0, T, BT):
        o_i = first + o_t
        in_i = o_i < T
        b_l_i = log_decay(p_ancestors, p_dt, rate, o_i, T, dt_node, BT)
        b_y = tl.zeros([BT, BP], dtype=tl.float32)
        for n in range(0, N, BN):
            b_C = tile(p_C + n, o_i, o_n, C_node, T, N - n)
            b_state = tile(p_state + n, o_p, o_n, N, P, N - n)
            b_y = tl.dot(b_C, tl.trans(b_state), b_y, input_precision=PRECISION)
        b_y *= tl.exp(b_l_i)[:, None]
        for other in range(0, first + BT, BT):  # parents come first: no ancestor lies behind this tile
            o_j = other + o_t
            in_j = o_j < T
            b_above = reaches(p_ancestors, o_i, o_j, T)
            b_l_j = log_decay(p_ancestors, p_dt, rate, o_j, T, dt_node, BT)
            # Between branches the exponent may be positive: mask before exp, or inf * 0 gives nan.
            b_decay = tl.exp(tl.where(b_above, b_l_i[:, None] - b_l_j[None, :], float("-inf")))
            b_scores = tl.zeros([BT, BT], dtype=tl.float32)
            for n in range(0, N, BN):
                b_C = tile(p_C + n, o_i, o_n, C_node, T, N - n)
                b_B = finite(tile(p_B + n, o_j, o_n, B_node, T, N - n))
                b_scores = tl.dot(b_C, tl.trans(b_B), b_scores, input_precision=PRECISION)
            b_step = finite(tl.load(p_dt + o_j * dt_node, mask=in_j, other=0.0).to(tl.float32))
            b_u = finite(tile(p_x, o_j, o_p, x_node, T, P) * b_step[:, None])
            b_y = tl.dot(tl.where(b_above, b_decay * b_scores, 0.0), b_u, b_y, input_precision=PRECISION)
        if SKIP:
            b_y += tile(p_x, o_i, o_p, x_node, T, P) * tl.load(p_D + i_h).to(tl.float32)
        tl.store(p_y + o_i[:, None] * (H * P) + o_p[None, :], b_y, mask=in_i[:, None] & in_p[None, :])


def tree_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor, ancestors: Tensor
) -> Tensor:
    """See :func:`naive.tree_scan`: float32 y [B, T, H, P]; parents come before their children, as in every tree."""
    nothing = (A, A, A, None, 1, False)
    return replay_scan_(x, dt, A, B, C, D, state.contiguous(), ancestors, *nothing, most=0)


def replay_scan_(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    ancestors: Tensor,
    path: Tensor,
    raw: Tensor,
    length: Tensor,
    dt_bias: Tensor | None,
    shared: int,
    softplus: bool,
    *,
    most: int | None = None,
) -> Tensor:
    """See :func:`naive.replay_scan_`; ``state`` is contiguous. ``most``: 0 where no path can be pending."""
    rows, count, heads, head_dim = x.shape
    groups, state_dim = B.shape[2:]
    x, B, C, dt = dense_rows(x, 2), dense_rows(B, 2), dense_rows(C, 2), dense_rows(dt, 2)
    y = x.new_empty(x.shape, dtype=torch.float32)
    config = scan_config(count, head_dim, state_dim, x.dtype)
    strides = [each.stride(dim) for each in (x, dt, B, C) for dim in (0, 1)]
    most = path.shape[1] if most is None else most
    above, bias = ancestors.contiguous().view(torch.uint8), A if dt_bias is None else dt_bias.contiguous()
    path, raw, length = path.contiguous(), raw.contiguous(), length.contiguous()
    with torch.cuda.device_of(x):  # Triton launches on the current device
        tree_scan_kernel[triton.cdiv(head_dim, config["BP"]), heads, rows](
            *(x, dt, A.contiguous(), B, C, None if D is None else D.contiguous(), state),
            *(above, y, path, raw, length, bias),
            *(count, *strides, path.shape[-1], heads, head_dim, groups, state_dim, D is not None),
            *(most, shared, dt_bias is not None, softplus),
            **config,
        )
    return y


@triton.jit
def _path_conv(
    p_window: tl.tensor,
    p_inputs: tl.tensor,
    p_path: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    d: int,
    o_c: tl.tensor,
    in_c: tl.tensor,
    channels: int,
    weight_tap: int,
    W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
) -> tl.tensor:
    """The channels ``o_c`` after the conv at the path's ``d``-th node, rounded as scoring rounded them."""
    b_sum = tl.zeros(o_c.shape, dtype=tl.float32)
    if HAS_BIAS:
        b_sum += tl.load(p_bias + o_c, mask=in_c, other=0.0).to(tl.float32)
    for tap in tl.static_range(W):
        place = d + tap + 1 - W  # negative: above the root
        node = tl.load(p_path + place, mask=place >= 0, other=0)
        b_before = tl.load(p_window + o_c * W + W + place, mask=in_c & (place < 0), other=0.0).to(tl.float32)
        b_on_path = tl.load(p_inputs + node * channels + o_c, mask=in_c & (place >= 0), other=0.0).to(tl.float32)
        b_weight = tl.load(p_weight + tap * weight_tap + o_c, mask=in_c, other=0.0).to(tl.float32)
        b_sum += (b_before + b_on_path) * b_weight
    b_sum = b_sum.to(p_inputs.dtype.element_ty).to(tl.float32)
    if SILU:
        b_sum = (b_sum * tl.sigmoid(b_sum)).to(p_inputs.dtype.element_ty).to(tl.float32)
    return b_sum


@triton.jit
def jump_states_kernel(
    p_windows: tl.tensor,
    p_states: tl.tensor,
    p_inputs: tl.tensor,
    p_dt: tl.tensor,
    p_path: tl.tensor,
    p_weight: tl.tensor,
    p_bias: tl.tensor,
    p_A: tl.tensor,
    p_dt_bias: tl.tensor,
    rows: int,
    T: int,
    D: int,
    channels: int,
    weight_tap: int,
    H: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    SHARED: tl.constexpr,
    W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_DT_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    SILU: tl.constexpr,
    BD: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """Of one layer, batch row and head, BP rows of the state: read once, moved along the path, written once.

    SHARED heads read the same channels of x, and as many groups the same of B.
    """
    i_p, i_h, i_lb = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_l, i_b = i_lb // rows, i_lb % rows
    o_p, o_n = i_p * BP + tl.arange(0, BP), tl.arange(0, BN)
    in_p, in_n = o_p < P, o_n < N
    o_x, o_B = _mixed_channels(i_h, o_p, o_n, H, P, G, N, SHARED)
    p_windows += i_lb * channels * W
    p_inputs += i_lb * T * channels
    p_dt += i_lb * T * H + i_h
    p_path += i_b * D
    p_weight += i_l * ((H * P + G * N) // SHARED)
    p_bias += i_l * ((H * P + G * N) // SHARED)
    p_states += (i_lb * H + i_h) * P * N
    rate = tl.load(p_A + i_l * H + i_h).to(tl.float32)
    in_state = in_p[:, None] & in_n[None, :]
    b_state = tl.load(p_states + o_p[:, None] * N + o_n[None, :], mask=in_state, other=0.0)
    length = path_length(p_path, D, BD)
    for d in range(0, length):
        step = _step_size(p_dt + tl.load(p_path + d) * H, p_dt_bias + i_l * H + i_h, HAS_DT_BIAS, SOFTPLUS)
        b_x = _path_conv(
            p_windows, p_inputs, p_path, p_weight, p_bias, d, o_x, in_p, channels, weight_tap, W, HAS_BIAS, SILU
        )
        b_B = _path_conv(
            p_windows, p_inputs, p_path, p_weight, p_bias, d, o_B, in_n, channels, weight_tap, W, HAS_BIAS, SILU
        )
        b_state = b_state * tl.exp(step * rate) + (step * b_x)[:, None] * b_B[None, :]
    tl.store(p_states + o_p[:, None] * N + o_n[None, :], b_state, mask=in_state)


def path_jump_(
    windows: Tensor,
    states: Tensor,
    inputs: Tensor,
    dt: Tensor,
    path: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    dt_bias: Tensor | None,
    *,
    groups: int,
    shared: int,
    softplus: bool,
    silu: bool,
) -> None:
    """See :func:`mamba2_scan.path_jump_`: all layers, the states in one launch and then the windows in another.

    Heads of a group read the same channels of the window, and no program knows when the others have.
    """
    layers, rows, heads, head_dim, state_dim = states.shape
    channels, taps = windows.shape[2:]
    inputs, dt, path = inputs.contiguous(), dt.contiguous(), path.contiguous()
    count, length = inputs.shape[2], path.shape[1]
    config = jump_config(length, head_dim, state_dim)
    with torch.cuda.device_of(windows):
        jump_states_kernel[triton.cdiv(head_dim, config["BP"]), heads, layers * rows](
            *(windows, states, inputs, dt, path, weight, weight if bias is None else bias, A),
            *(A if dt_bias is None else dt_bias, rows, count, length, channels, weight.stride(0)),
            *(heads, head_dim, groups, state_dim, shared, taps, bias is not None, dt_bias is not None, softplus, silu),
            **config,
        )
    jump_windows_(windows, inputs, path)
