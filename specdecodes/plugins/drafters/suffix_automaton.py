"""The suffix automaton of a text that grows, with occurrence counts.

The online construction is that of Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".

States. endpos(w) is the set of places where the string w ends in the text. Of two strings with a common place one is
a suffix of the other, so that two such sets are nested or disjoint: the strings of one set are the suffixes of its
longest member, down to a shortest length, and by inclusion the sets form a tree. A state is such a set. It keeps
``length``, that of its longest member, and ``link``, its parent in the tree, whose longest member is one token
shorter than the shortest member here. ``next[t]`` leads from the state of w to that of w t.

One more token t. The text with t is a new string and gets a new state. The suffixes of the old text are the members
of the state of the whole text, ``last``, and of the states along its links. As long as a state there has no
transition for t, its members were never followed by t and now are, at the end alone: the transition goes to the new
state. Let p be the first state that has one, and q where it leads. (longest member of p) t is then the longest suffix
of the new text that has occurred before. If it is the longest member of q, q is the new state's link. If it is not,
the longer members of q do not end here while the shorter ones do, and q is split: a clone takes the shorter ones (the
transitions and the link of q, length(p) + 1), becomes the link of q and of the new state, and takes over the
transitions that lead to q from p and along the links of p. The first loop sets a transition at each turn, and there
are fewer than 3n in all; each turn of the second moves the start of the longest member of link(link(last)) to the
right, and nothing moves it back. So a token costs O(1) amortised (and the copy of one state's transitions where one
is split), whatever the length of a match.

Counts. count(q) = |endpos(q)|: how often each member of q occurs. One more token adds its place to the new state and
to all states along its links, and to no other. Walking there takes as many steps as the text has different classes of
suffixes: few in prose, but n where it repeats one token, O(n^2) in all. Only short contexts need counts: what follows
a string of 65 tokens is hardly ever in doubt. So ``_tail`` follows the state of the text's last ``max_context + 1``
tokens (one transition and at most one link; if its state is split, the clone has the same transition), and the walk
starts there: at most ``max_context + 1`` steps a token, and exact for every string of up to that length. A clone
starts with the count of the state that it was split from, which is exact, since splitting adds no place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

SEPARATOR = -2
"""Ends a document inside a text; no token (and not the -1 of a missing one), so that nothing is matched across it."""

MAX_CONTEXT = 64


class SuffixAutomaton:
    """All substrings of a text of token ids, which grows at its end.

    ``max_context``: how long a context may be whose continuations are counted; see :meth:`continuations`. A token
    takes about half a kilobyte.

    Attributes:
        size: tokens in the text.
    """

    def __init__(self, max_context: int = MAX_CONTEXT) -> None:
        self.size = 0
        self._counted = max_context + 1  # a context and its continuation
        self._next: list[dict[int, int]] = [{}]
        self._links = [-1]
        self._lengths = [0]
        self._counts = [0]
        self._last = 0
        self._tail = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Append ``tokens`` to the text; see the module."""
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        following, links, lengths, counts = self._next, self._links, self._lengths, self._counts
        new, at = len(links), self._last
        self.size += 1
        following.append({})
        links.append(0)
        lengths.append(self.size)
        counts.append(0)
        while at >= 0 and token not in following[at]:
            following[at][token] = new
            at = links[at]
        if at >= 0:
            found = following[at][token]
            links[new] = found if lengths[found] == lengths[at] + 1 else self._split(at, token, found)
        self._last = new
        if self.size <= self._counted:
            self._tail = new
        else:
            tail = following[self._tail][token]
            self._tail = tail if lengths[links[tail]] < self._counted else links[tail]
        at = self._tail
        while at > 0:
            counts[at] += 1
            at = links[at]

    def _split(self, at: int, token: int, found: int) -> int:
        """Take the members up to length(at) + 1 out of ``found``, into a state of their own."""
        following, links, lengths = self._next, self._links, self._lengths
        clone = len(links)
        following.append(following[found].copy())
        links.append(links[found])
        lengths.append(lengths[at] + 1)
        self._counts.append(self._counts[found])
        links[found] = clone
        while at >= 0 and following[at].get(token) == found:
            following[at][token] = clone
            at = links[at]
        return clone

    @property
    def root(self) -> tuple[int, int]:
        """The longest suffix of the text that occurs earlier in it: (state, length)."""
        state = max(self._links[self._last], 0)
        return state, self._lengths[state]

    def step(self, state: int, length: int, token: int) -> tuple[int, int]:
        """The longest suffix of (a match of ``length`` in ``state``, then ``token``) that occurs: (state, length)."""
        while True:
            after = self._next[state].get(token)
            if after is not None:
                return after, length + 1
            state = self._links[state]
            if state < 0:
                return 0, 0
            length = self._lengths[state]

    def settle(self, state: int, length: int) -> tuple[int, int]:
        """A match that was found before the text grew: its state may have been split since."""
        while self._lengths[max(self._links[state], 0)] >= length > 0:
            state = self._links[state]
        return state, length

    def suffixes(self, state: int, length: int) -> Iterator[tuple[int, int]]:
        """The suffixes of a match that were followed by something, longest first: (length, state).

        One per state, since the others of a state are followed by the same; the empty one is left out.
        """
        while state > 0:
            if self._next[state]:
                yield length, state
            state = self._links[state]
            length = self._lengths[state]

    def continuations(self, state: int) -> dict[int, int]:
        """How often each token followed the strings of ``state``.

        Where all of them are longer than ``max_context``, each continuation counts 1.
        """
        if self._lengths[self._links[state]] + 1 >= self._counted:
            return dict.fromkeys(self._next[state], 1)
        counts = self._counts
        return {token: counts[after] for token, after in self._next[state].items()}
