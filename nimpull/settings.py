"""The environment as one frozen value. Nothing else in nimpull reads ``os.environ``.

Variables and their meaning are NIM's and Hugging Face's own (protocol note "NIM container", section 2);
``docs/environment.md`` is the table for users.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nimpull.errors import UsageError

NGC_KEY_VARIABLES: Final = ("NGC_CLI_API_KEY", "NGC_API_KEY")  # NIM's own order
HF_TOKEN_VARIABLES: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
MANIFEST_PATHS: Final = (
    "/opt/nim/etc/default/model_manifest.yaml",
    "/etc/nim/config/model_manifest.yaml",
)
CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
DEFAULT_CACHE: Final = "/opt/nim/.cache"
TERMINATION_LOG: Final = "/dev/termination-log"  # Kubernetes' default of terminationMessagePath
DEFAULT_RETRY_SECONDS: Final = 120.0  # without any progress; then a run gives up
DEFAULT_BACKOFF_MS: Final = 1000.0  # where NIM_SDK_DOWNLOAD_MAX_RETRY_COUNT comes without an interval
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_CONFUSED_KEYS: Final = {
    "NGC_KEY": "NGC_API_KEY",
    "NGC_APIKEY": "NGC_API_KEY",
    "NVIDIA_API_KEY": "NGC_API_KEY",
    "HF_API_TOKEN": "HF_TOKEN",
    "HUGGINGFACE_TOKEN": "HF_TOKEN",
    "HUGGINGFACE_HUB_TOKEN": "HF_TOKEN",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says. Paths are text as given; keys never appear in ``repr``."""

    cache_path: str = ""
    hf_home: str = ""
    ngc_key: str = field(default="", repr=False)
    ngc_api: str = "https://api.ngc.nvidia.com"
    ngc_auth: str = "https://authn.nvidia.com"
    hf_token: str = field(default="", repr=False)
    hf_endpoint: str = "https://huggingface.co"
    manifest_path: str = ""
    model_profile: str = ""
    tags_selector: str = ""
    gpus: str = ""
    ca_files: tuple[str, ...] = ()
    ca_directories: tuple[str, ...] = ()
    http_proxy: str = field(default="", repr=False)
    https_proxy: str = field(default="", repr=False)
    no_proxy: str = ""
    jsonl_logging: bool = False
    log_level: str = "INFO"
    termination_log: str = TERMINATION_LOG
    retry_seconds: float = DEFAULT_RETRY_SECONDS
    repository_override: str = field(default="", repr=False)
    s3_endpoint: str = ""
    s3_region: str = ""
    model_path: str = ""
    ignore_download_failure: bool = False
    disable_download: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def manifest_paths(self) -> tuple[str, ...]:
        """Where a manifest may be, in order. A path that was given is the only one."""
        return (self.manifest_path,) if self.manifest_path else MANIFEST_PATHS

    @property
    def hub_cache(self) -> str:
        """``HF_HUB_CACHE`` as huggingface_hub derives it: ``$HF_HOME/hub``."""
        return f"{self.hf_home or f'{self.cache_path or DEFAULT_CACHE}/huggingface'}/hub"

    def hub_in(self, store: str) -> str:
        """``$HF_HOME/hub`` below the store, as the operator sets it; else NIM's default."""
        return self.hub_inside(store) or "huggingface/hub"

    def hub_inside(self, store: str) -> str:
        """``$HF_HOME/hub`` below the store; "" where HF_HOME is elsewhere, or not set."""
        inside = os.path.relpath(self.hf_home, store) if self.hf_home else ".."
        return "" if inside.split("/")[0] == ".." else os.path.normpath(f"{inside}/hub")


def load(environ: Mapping[str, str]) -> Settings:
    """Read the variables. Raises UsageError for one whose value cannot be meant."""
    scheme = environ.get("NGC_API_SCHEME", "").strip() or "https"
    ngc_key, ngc_warnings = _secret(environ, NGC_KEY_VARIABLES)
    hf_token, hf_warnings = _secret(environ, HF_TOKEN_VARIABLES)
    return Settings(
        cache_path=_text(environ, "NIM_CACHE_PATH"),
        hf_home=_text(environ, "HF_HOME"),
        ngc_key=ngc_key,
        ngc_api=_endpoint(environ, "NGC_API_ENDPOINT", "api.ngc.nvidia.com", scheme),
        ngc_auth=_endpoint(environ, "NGC_AUTH_ENDPOINT", "authn.nvidia.com", scheme),
        hf_token=hf_token,
        hf_endpoint=_endpoint(environ, "HF_ENDPOINT", "huggingface.co", "https"),
        manifest_path=_text(environ, "NIM_MANIFEST_PATH"),
        model_profile=_text(environ, "NIM_MODEL_PROFILE") or _text(environ, "NIM_MANIFEST_PROFILE"),
        tags_selector=_text(environ, "NIM_TAGS_SELECTOR"),
        gpus=_text(environ, "NIMPULL_GPUS"),
        ca_files=tuple(value for name in CA_VARIABLES if (value := _text(environ, name))),
        ca_directories=tuple(filter(None, _text(environ, "SSL_CERT_DIR").split(os.pathsep))),
        http_proxy=_either_case(environ, "HTTP_PROXY"),
        https_proxy=_either_case(environ, "HTTPS_PROXY"),
        no_proxy=_either_case(environ, "NO_PROXY"),
        jsonl_logging=_flag(environ, "NIM_JSONL_LOGGING"),
        log_level=_text(environ, "NIM_LOG_LEVEL").upper() or "INFO",
        termination_log=termination_log(environ),
        retry_seconds=_seconds(environ, "NIMPULL_RETRY_SECONDS", _sdk_retry_seconds(environ)),
        repository_override=_text(environ, "NIM_REPOSITORY_OVERRIDE"),
        s3_endpoint=_text(environ, "AWS_ENDPOINT_URL_S3") or _text(environ, "AWS_ENDPOINT_URL"),
        s3_region=_text(environ, "AWS_REGION") or _text(environ, "AWS_DEFAULT_REGION"),
        model_path=_text(environ, "NIM_ENGINE_MODEL_PATH"),
        ignore_download_failure=_flag(environ, "NIM_IGNORE_MODEL_DOWNLOAD_FAIL"),
        disable_download=_flag(environ, "NIM_DISABLE_MODEL_DOWNLOAD"),
        warnings=(*ngc_warnings, *hf_warnings, *_misnamed(environ)),
    )


def _text(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip()


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    return _number(environ, name, default, "seconds")


def _number(environ: Mapping[str, str], name: str, default: float, unit: str) -> float:
    value = _text(environ, name)
    if not value:
        return default
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise UsageError(f"{name} is no number of {unit}", hint=f"Set {name} to 120, for example.")
    return number


def _sdk_retry_seconds(environ: Mapping[str, str]) -> float:
    """NIM counts retries, nimpull the time without progress: 0 retries are none, more only extend it."""
    count = _number(environ, "NIM_SDK_DOWNLOAD_MAX_RETRY_COUNT", 1.0, "retries")
    wait = _number(environ, "NIM_SDK_DOWNLOAD_BACKOFF_INTERVAL_MS", DEFAULT_BACKOFF_MS, "milliseconds")
    return max(DEFAULT_RETRY_SECONDS, count * wait / 1000) if count else 0.0


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return _text(environ, name).lower() in _TRUE


def _either_case(environ: Mapping[str, str], name: str) -> str:
    """The lower-case form wins, as in curl and urllib; the operator sets both, "" when not given."""
    return _text(environ, name.lower()) or _text(environ, name)


def _endpoint(environ: Mapping[str, str], name: str, default: str, scheme: str) -> str:
    """With or without scheme, with or without a path prefix (NGC note, section 7)."""
    value = _text(environ, name).rstrip("/") or default
    if "://" not in value:
        value = f"{scheme}://{value}"
    if not value.lower().startswith(("http://", "https://")):
        raise UsageError(f"{name} is not an http(s) address", hint=f"Set {name} to https://host[/path].")
    return value


def _secret(environ: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The first that is not empty. A newline from a secret made with ``echo`` is cut off, and told."""
    warnings = []
    for name in names:
        if name not in environ:
            continue
        value = environ[name].strip()
        if not value:
            warnings.append(f"{name} is set but empty: check the key of the secret that it comes from")
            continue
        if value != environ[name]:
            warnings.append(f"{name} had blanks or a newline around it, which were cut off")
        if any(character.isspace() or not character.isprintable() for character in value):
            raise UsageError(
                f"{name} holds blanks or control characters inside",
                hint="Make the secret anew from the key alone: one line, no quotes.",
            )
        return value, tuple(warnings)
    return "", tuple(warnings)


def _misnamed(environ: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{wrong} is set but nothing reads it; did you mean {right}?"
        for wrong, right in _CONFUSED_KEYS.items()
        if environ.get(wrong) and not environ.get(right)
    )


def from_process(overrides: Mapping[str, str] | None = None) -> Settings:
    """The environment of this process, with ``overrides`` (a NIMCache's ``spec.env``) on top."""
    return load({**os.environ, **(overrides or {})})


def termination_log(environ: Mapping[str, str] = os.environ) -> str:
    """Alone too: the message has to be written even where the other variables cannot be read."""
    return _text(environ, "NIMPULL_TERMINATION_LOG") or TERMINATION_LOG


def download_only_is_set() -> bool:
    """NIM_ENGINE_MODEL_DOWNLOAD_ONLY: a start without a command is a download."""
    return _flag(os.environ, "NIM_ENGINE_MODEL_DOWNLOAD_ONLY")
