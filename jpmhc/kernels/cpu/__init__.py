"""Bodies in Numba, one file an operation's own: serial over a range of tokens, without the interpreter's lock."""
