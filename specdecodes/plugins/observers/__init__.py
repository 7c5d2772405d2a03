"""Observers: they watch a generation through wrappers and events and change nothing of it."""
