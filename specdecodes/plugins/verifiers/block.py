"""Judge a chain as one block."""

from __future__ import annotations

from specdecodes.plugins.verifiers.traversal import Traversal


class Block(Traversal):
    """Block verification of a chain (Sun et al. 2024, arXiv 2403.10444): the tree rule without siblings.

    With m_i = min(1, m_{i-1} * p(x_i) / q(x_i)), m_0 = 1, the last of the chain's tokens is kept with probability m,
    and an earlier one, if none after it was, with sum(r) / (sum(r) + 1 - m_i) for r = max(m_i * p - q, 0); the bonus
    comes from r, normalised. They prove that no lossless rule accepts more tokens of a chain on average.
    """

    draws = ("iid", "without_replacement")
    chain_only = True
