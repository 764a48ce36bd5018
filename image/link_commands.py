"""Link nimpull's own commands into a directory for PATH: its dependencies bring tools of the same names."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir()
    for command in entry_points(group="console_scripts"):
        if command.dist is None or command.dist.name != "nimpull":
            continue
        script = Path(sys.executable).parent / command.name
        if command.module not in script.read_text(encoding="utf-8"):
            sys.exit(f"{script} is another package's: install nimpull after its dependencies")
        (directory / command.name).symlink_to(script)
        if command.name == "huggingface-cli":  # its other name; the script of that name is huggingface_hub's
            (directory / "hf").symlink_to(script)


if __name__ == "__main__":
    main()
