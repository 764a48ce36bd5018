"""nimpull puts the right NIM model profile onto a volume: whole, verified, and says what it did.

A pure core decides, thin edges act, and :mod:`nimpull.job` runs the steps in order.

docs/architecture.md says who may do what, and the import contracts in ``pyproject.toml`` hold it.
"""

__version__ = "0.1.0"
