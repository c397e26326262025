"""The ARC-AGI benchmark: a tiny recursive model whose skip connections are the mixers under test."""
