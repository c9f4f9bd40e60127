"""From RecBole's atomic files to rows that every model shares: splits, candidate sets, titles.

The way through: `protocol` reads the keys, `dataset` loads and splits, `windows` and `candidates` make the rows and
their candidate sets, `candidate_file` freezes and hashes them, `titles` gives each item its text.
"""
