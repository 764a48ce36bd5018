"""Measures nimpull beside other downloaders, on the same work: ``scripts/bench``."""
