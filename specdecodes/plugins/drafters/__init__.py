"""Drafters: what may come next, at every node that a tree builder asks about."""
