"""Time, memory and launches of the kernels beside the usual ways to write the same."""
