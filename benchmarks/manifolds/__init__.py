"""What each map of a manifold costs and how far from the manifold its result is, beside three other libraries."""
