"""Quantizing methods, one file each.

A method file is found by its name. It holds `NEEDS` (the calibration statistics it asks for), `Options` (what it alone can be told),
`ACTIVATIONS` (bits of the inputs at run time: 8, or None where they stay as they are), and

    quantize(weight_OI, statistics, grid, options) -> Codes

pure over tensors. Weights that arrive as exactly 0 leave with code 0.
"""
