"""``python -m nimpull`` and the ``nimpull`` console script."""

from __future__ import annotations

import sys


def main() -> None:
    from nimpull.cli.main import cli

    sys.exit(cli())


if __name__ == "__main__":
    main()
