"""Derivatives of equations: this library against unrolled loops and other libraries."""
