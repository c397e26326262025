"""Benchmarks of the library, each run as ``python -m benchmarks NAME``."""
