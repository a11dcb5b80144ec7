"""Pruning methods, one file each.

A method file is found by its name. It holds `NEEDS` (the calibration statistics it asks for), `Options` (what it alone can be told), and

    prune(weight_OI, statistics, target, options) -> weight_OI     with exact zeros where it prunes

pure over tensors. A method that divides the zeros unevenly among layers adds `allot(weights, target, options) -> {name: sparsity}`.
Convolutions arrive as [out, in * height * width], the matrices of an LSTM one by one. Zeros that arrive stay zeros.
"""
