"""From RecBole's atomic files to rows that every model shares: splits, candidate sets, titles.

The way through: `tables` reads and writes, `atomic_files` checks, `dataset` loads, cuts and splits, `rows` says which split may know
what, `candidates` draws and freezes, `titles` gives each item its text, `numbering` keeps the numbers that weights rest on.
"""
