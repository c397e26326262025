"""Bodies in Triton, one file an operation's own."""
