"""nimpull as a process: started with an environment of its own, ended, and what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.registry import Registry

CONFIG = b'{"architectures": ["Tiny"]}\n'
WEIGHTS = bytes(range(256)) * 20_000  # 5 MB: several reads
FILES: Mapping[str, bytes] = {
    "config.json": CONFIG,
    "model.safetensors": WEIGHTS,
    "tokenizer/vocab.txt": b"a\nb\n",
    "empty.txt": b"",
}
CLOSED = "http://127.0.0.1:1"  # nothing listens on tcpmux here
PROGRAM = (sys.executable, "-m", "nimpull")
HANG = 240.0  # seconds after which a run on a busy machine hangs
_started: list[subprocess.Popen[str]] = []


@dataclass(frozen=True, slots=True)
class Run:
    code: int
    out: str
    err: str
    report: dict[str, Any]

    @property
    def text(self) -> str:
        return self.out + self.err


def start(
    registry: Registry,
    store: Path,
    *arguments: str,
    under: tuple[str, ...] = (),
    program: tuple[str, ...] = PROGRAM,
    **environment: str,
) -> subprocess.Popen[str]:
    """``under``: a command that runs nimpull, such as setpriv; ``program``: what stands for nimpull."""
    known = {
        "PATH": os.environ["PATH"],
        "HOME": str(store.parent),
        "NGC_API_KEY": registry.ngc.key,
        "NGC_API_ENDPOINT": registry.ngc_url,
        "NGC_AUTH_ENDPOINT": registry.ngc_url,
        "HF_TOKEN": registry.hub.token,
        "HF_ENDPOINT": registry.hub_url,
        "NIM_CACHE_PATH": str(store),
        "NIMPULL_RETRY_SECONDS": "0",
        "NIMPULL_TERMINATION_LOG": str(store.parent / "no-termination-log"),
    }
    command = [*under, *program, *arguments]
    process = subprocess.Popen(
        command, env={**known, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _started.append(process)
    return process


def end_what_was_started() -> None:
    """What a test that failed leaves behind must not fail the next one: neither processes nor pipes."""
    for process in _started:
        with process:
            process.kill()  # which also ends one that is stopped
    _started.clear()


def ended(process: subprocess.Popen[str], store: Path) -> Run:
    with process:
        try:
            out, err = process.communicate(timeout=HANG)
        finally:
            process.kill()
    report = store / ".nimpull" / "report.json"
    return Run(process.returncode, out, err, json.loads(report.read_text()) if report.is_file() else {})


def nimpull(registry: Registry, store: Path, *arguments: str, **environment: str) -> Run:
    return ended(start(registry, store, *arguments, under=(), program=PROGRAM, **environment), store)


def snapshot(store: Path, source: str) -> Path:
    (found,) = (store / source).glob("hub/models--*/snapshots/*")
    return found


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not {".nimpull", ".cache"} & set(path.relative_to(root).parts)
    }


def check(document: object) -> None:
    schema = json.loads((files("nimpull") / "report.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(document)
