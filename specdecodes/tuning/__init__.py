"""Measure costs and acceptance on this machine, and choose the mode, the tree and its size from them."""
