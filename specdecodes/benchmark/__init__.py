"""Benchmarks: question sets, and runners that measure a mode against plain decoding."""
