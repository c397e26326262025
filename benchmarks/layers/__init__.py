"""One sublayer forward and backward: every mixer, the peers' layers, the plain residual."""
