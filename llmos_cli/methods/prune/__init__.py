"""Pruning methods, one file each.

A method file is found by its name. It holds `NEEDS` (the calibration statistics it asks for), `Options` (what it alone can be told), and

    prune(weight_OI, statistics, target, options) -> weight_OI     with exact zeros where it prunes

pure over tensors. What it needs may hang on its options: `needs(options)`, some of `NEEDS`.
A method that divides the zeros unevenly among layers adds `allot(weights, target, options) -> {name: sparsity}`.
A method that scores weights by gradients, of a model in memory as a whole, has `allot` over scores and, instead of `prune`,

    score(weight_OI, fisher_OI, options) -> score_OI               by the mean squared gradient of a sample's loss

or, where the mask is found while the model trains towards its parent for `options.steps`,

    start(weight_OI, options) -> score_OI                          before the first step
    moved(score_OI, weight_OI, gradient_OI, options) -> score_OI   after each
    at(progress, target, options) -> Target                        what is to be masked by then

A structured method cuts, and has instead

    gradients(options) -> bool                                     whether `rank` wants first-order moves of the loss
    counts(units, options) -> [int]                                how many of a layer's units may stay
    rank(readers, options) -> Ranking                              which units go first, and what that costs
    refit(weight_OI, kept_I, statistics, options) -> weight_OI     with zeros but in the columns kept

or, where whole blocks go, `influence(before_ND, after_ND, options) -> [N]`, how much a block does to each position. One that cuts both
ways has the three above and

    depths(most, options) -> [int]                                 how many blocks may go, where `most` are the whole cut
    chosen(kl, options) -> int                                     how many do, by the KL measured with so many gone

Convolutions arrive as [out, in * height * width], the matrices of an LSTM one by one. Zeros that arrive stay zeros.
"""
