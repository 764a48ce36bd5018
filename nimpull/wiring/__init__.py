"""The edges of one job: built, wired together, and called by :mod:`nimpull.job`; ``edges`` is the start."""
