"""Sample from the target, and go on as long as the sample was drafted."""

from __future__ import annotations

from specdecodes.plugins.verifiers.base import MatchingVerifier


class TokenMatch(MatchingVerifier):
    """Draw from the target at each node and follow the child that equals the draw; lossless whatever was drafted."""

    lossless = True
