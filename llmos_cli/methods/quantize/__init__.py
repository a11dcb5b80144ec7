"""Quantizing methods, one file each.

A method file is found by its name. It holds `NEEDS` (the calibration statistics it asks for), `Options` (what it alone can be told),
`ACTIVATIONS` (bits of the inputs at run time: 8, or None where they stay as they are), `FLOATS` where both are 8-bit floats, and

    quantize(weight_OI, statistics, grid, options) -> Codes

pure over tensors. What it needs may hang on its options: `needs(options)`, some of `NEEDS`. Weights that arrive as exactly 0 leave with code 0. A method that works on whole blocks too defines one or both of

    prepare(turn, grids, options) -> None
    refine(turn, roundings, options, *, seed) -> dict[str, Codes]

and has `NEEDS`, for both are given a block's `Turn` (models/calibrate.py): its module, what it is given in the compressed stream,
what the original answered. `prepare` may rewrite the block in place, before its matrices are measured, so that it computes the
same (scales moved from a norm into the linear layers after it); `grids` are those of the matrices that will hold codes. `refine`
comes when all of them do: from each matrix's weights and codes (`methods/grid.py`: Rounding) to better codes on the same grid,
of as many as it likes.
"""
