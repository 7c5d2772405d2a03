"""The depthwise causal convolution in front of a Mamba mixer, over a sequence and over a tree.

Letters: B rows, T tokens or nodes, C channels, W taps (the conv width).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def activate(y: Tensor, activation: str | None) -> Tensor:
    """Apply the conv's activation (``silu``, ``swish`` or None)."""
    if activation is None:
        return y
    if activation in ("silu", "swish"):
        return F.silu(y)
    raise ValueError(f"activation: expected 'silu', 'swish' or None, got {activation!r}")


def sequence_conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """Convolve ``x`` [B, C, T], whose left context is zero, with ``weight`` [C, W]; returns [B, C, T].

    A sum of W shifted products: at the widths in use (4) this is several times faster on a CPU than
    a grouped ``conv1d``, and its gradient is cheap. Sums in at least float32.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    length, width = x.shape[-1], weight.shape[-1]
    padded, weight = F.pad(x, (width - 1, 0)).to(kind), weight.to(kind)
    y = padded[..., :length] * weight[:, 0, None]
    for tap in range(1, width):
        y = torch.addcmul(y, padded[..., tap : tap + length], weight[:, tap, None])
    if bias is not None:
        y = y + bias.to(kind)[:, None]
    return activate(y.to(x.dtype), activation)


def window_conv(windows: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """Convolve prepared windows [..., C, W] (newest input last) with ``weight`` [C, W]; returns [..., C].

    Sums in at least float32 and rounds before the activation, as ``conv1d`` does: in bfloat16 rounding anywhere else
    is what breaks close decisions.
    """
    kind = torch.promote_types(windows.dtype, torch.float32)
    y = (windows.to(kind) * weight.to(kind)).sum(-1)
    if bias is not None:
        y = y + bias.to(kind)
    return activate(y.to(windows.dtype), activation)


def path_conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """Convolve [..., W - 1 + D, C], left context included, with ``weight`` [W, ..., C]; returns [..., D, C].

    Channels innermost and taps outermost, as :func:`sequence_conv` in the other layout. Sums in at least float32.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    width = weight.shape[0]
    count = x.shape[-2] - width + 1
    wide, weight = x.to(kind), weight.to(kind)
    y = wide[..., :count, :] * weight[0]
    for tap in range(1, width):
        y = torch.addcmul(y, wide[..., tap : tap + count, :], weight[tap])
    if bias is not None:
        y = y + bias.to(kind)
    return activate(y.to(x.dtype), activation)


def tree_conv(
    x: Tensor, window: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """Convolve every node of a tree along its own path.

    Args:
        x: raw inputs of the nodes [B, C, T]; window: the last W inputs above the root [B, C, W], oldest first.
        index: int64 [B, T, W] into the concatenation of both (``Topology.windows``); weight: [C, W].

    Returns:
        [B, C, T].
    """
    rows, channels, count = x.shape
    width = weight.shape[-1]
    # Channels innermost, so that a tap is one contiguous row: three times faster than gathering along nodes.
    inputs = torch.cat([window.mT.to(x.dtype), x.mT], dim=1).view(-1, channels)
    if rows > 1:
        index = index + torch.arange(rows, device=x.device)[:, None, None] * (width + count)
    taps = inputs.index_select(0, index.reshape(-1)).view(rows, count, width, channels)
    kind = torch.promote_types(x.dtype, torch.float32)
    y = (taps.to(kind) * weight.to(kind).mT).sum(2)
    if bias is not None:
        y = y + bias.to(kind)
    return activate(y.to(x.dtype), activation).mT


def replay_conv_(
    x: Tensor,
    window: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    inputs: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor]:
    """Move ``window`` [B, C, W] behind a pending path, in place, and convolve a tree from there.

    Args:
        inputs: raw inputs of the path's nodes [B, M, C]; length: int64 [B], how many of the M there are, 0 to M.
        x, index, weight, bias, activation: as in :func:`tree_conv`.

    Returns:
        The tree's nodes after the conv [B, C, T], and the path's [B, M, C] (behind ``length``: anything).
    """
    width = weight.shape[-1]
    joined = torch.cat([window.mT.to(x.dtype), inputs], dim=1)
    path = path_conv(joined[:, 1:], weight.mT, bias, activation)
    last = length[:, None] + torch.arange(width, device=x.device)
    window.copy_(joined.gather(1, last[..., None].expand(-1, -1, joined.shape[-1])).mT)
    return tree_conv(x, window, index, weight, bias, activation), path


def step_conv_(window: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """One token per row: shift ``x`` [R, C] into ``window`` [R, C, W] in place and convolve it; returns [R, C]."""
    window.copy_(torch.cat([window[..., 1:], x[..., None].to(window.dtype)], dim=-1))
    if window.dtype in (torch.float32, torch.float64):
        y = torch.linalg.vecdot(window, weight.to(window.dtype))
        return activate(y if bias is None else y + bias, activation)
    return window_conv(window, weight, bias, activation)
