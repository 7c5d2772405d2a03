"""Verifiers: which path of a tree the target accepts. ``accept`` is a pure function of its arguments."""
