"""Products with quantized weights that are faster than dense ones: what kernels there are, which is best here, layers that use it."""
