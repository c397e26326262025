"""What a step of a Riemannian optimiser costs and how many a solver takes, beside geoopt in the same process."""
