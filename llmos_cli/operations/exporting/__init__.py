"""Formats that `llmos export` writes, one file each.

A format file holds `TYPES` (how it can store weights), `SUFFIXES` (its files of weights), `FILE` (the name of the one file it
writes, "" for a directory) and

    write(checkpoint, target, options) -> Outcome

which fills the empty directory `target`, and reads back what it wrote before it returns.
"""
