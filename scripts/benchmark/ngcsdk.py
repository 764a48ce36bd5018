"""ngcsdk's download engine on URLs of our own: ``PYTHON ngcsdk.py JOB``, with the Python that has ngcsdk.

JOB as for ``engine.py``. What the NGC API would answer (one presigned URL a file) is answered here, at once.
"""

import json
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ngcbase.transfer.async_download import direct_download_files


class Connection:
    """Stands where the SDK's connection to NGC would."""

    def __init__(self, base: str) -> None:
        self._base = base

    @property
    def connection(self) -> "Connection":
        return self

    def make_api_request(self, method: str, url: str, **options: object) -> dict[str, list[str]]:
        del method, options
        (path,) = parse_qs(urlsplit(url).query)["path"]
        return {"urls": [f"{self._base}/{path}"]}


def silent(*counts: int) -> None:
    del counts


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    sizes = {name: size for name, size, _ in job["files"]}
    stats = direct_download_files(
        "model",
        "bench",
        "bench",
        None,
        "1",
        "http://unused.invalid",
        False,
        sizes,
        sum(sizes.values()),
        job["target"],
        Connection(job["base"]),
        silent,
    )
    if stats.status != "Completed":
        sys.exit(f"ngcsdk says {stats.status}: {stats.completed_count} of {len(sizes)} files")


if __name__ == "__main__":
    main()
