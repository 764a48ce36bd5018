"""The edges of one job: built, wired together, and called by :mod:`nimpull.job`; ``wiring`` is the start."""
