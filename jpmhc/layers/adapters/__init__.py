"""How an existing block is given streams without a change to its code: the parts of :func:`jpmhc.layers.convert`."""
