"""Runs a command and prints what it used, as JSON. Started with ``python -I -S``, on its own.

A process inherits the peak RSS of the one that started it (Linux keeps it over exec): this one is small,
about 10 MiB, which is the least that it can report.
"""

import json
import os
import subprocess
import sys
import tempfile
import time


def main() -> None:
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(max(0, said.tell() - 2000))
        lines = said.read().decode(errors="replace").split("\n")
    told = {
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": usage.ru_maxrss << 10,
        "code": child.returncode,
        "said": next((line.strip() for line in reversed(lines) if line.strip()), ""),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
