"""The commands of the image with the environment of a Job, and the small model that they pull."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.pods import run
from tests.registry import Registry

FILES = {"config.json": b"{}", "weights/model.bin": b"\1" * 3_000_000}
COMMANDS = {
    "nimpull": "nimpull.__main__:main",
    "download-to-cache": "nimpull.__main__:download_to_cache",
    "create-model-store": "nimpull.__main__:create_model_store",
    "huggingface-cli": "nimpull.__main__:hugging_face",
    "check-cache-env": "nimpull.__main__:check_cache_env",
}


def call(registry: Registry, store: Path, *command: str, **environment: str) -> tuple[int, str]:
    """As the Job does: nothing in the environment but what the operator and the secrets set."""
    known = {
        "PATH": os.environ["PATH"],
        "NIM_CACHE_PATH": str(store),
        "NGC_API_KEY": registry.ngc.key,
        "NGC_API_ENDPOINT": registry.ngc_url,
        "NGC_AUTH_ENDPOINT": registry.ngc_url,
        "HF_TOKEN": registry.hub.token,
        "HF_ENDPOINT": registry.datastore_url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": f"{store}/huggingface/hub",
        "NIMPULL_RETRY_SECONDS": "0",
    }
    return invoke(command, {**known, **environment})


def invoke(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """(exit code, stdout then stderr) of one of nimpull's scripts with this environment and no other."""
    module, function = COMMANDS[command[0]].split(":")
    program = (sys.executable, "-c", f"from {module} import {function} as run; run()")
    return run((*program, *command[1:]), environment)


def manifest(path: Path) -> Path:
    path.write_text(
        f"schema_version: '2.0'\nprofiles:\n- id: {'a' * 64}\n"
        "  tags: {llm_engine: vllm, precision: fp16, tp: '1'}\n"
        "  workspace:\n    files:\n"
        "      config.json: {uri: 'ngc://nim/meta/tiny:hf-1?file=config.json'}\n"
        "      engine/model.bin: {uri: 'ngc://nim/meta/tiny:hf-1?file=weights/model.bin'}\n"
    )
    return path


def plain(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.relative_to(store).parts[0] not in (".nimpull", ".cache", "huggingface")
    }
