"""The environment as one frozen value. Nothing else in nimpull reads ``os.environ``.

Variables and their meaning are NIM's ("Configuration" in NVIDIA's documentation of a NIM), huggingface_hub's
("Environment variables") and Kubernetes' own; ``docs/environment.md`` is the table for users.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nimpull.core.events import Level
from nimpull.core.names import display
from nimpull.core.proxies import NO_PROXIES, Proxies
from nimpull.core.units import parse_quantity
from nimpull.errors import UsageError

NGC_KEY_VARIABLES: Final = ("NGC_CLI_API_KEY", "NGC_API_KEY")  # NIM's own order
HF_TOKEN_VARIABLES: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
#: Where NIM images have it, in the order in which the operator's probe looks.
MANIFEST_PATHS: Final = (
    "/opt/nim/etc/default/model_manifest.yaml",
    "/etc/nim/config/model_manifest.yaml",
)
#: Whatever the tool they were meant for, their bundles are trusted beside the system's.
CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
DEFAULT_CACHE: Final = "/opt/nim/.cache"
TERMINATION_LOG: Final = "/dev/termination-log"  # Kubernetes' default of terminationMessagePath
DEFAULT_RETRY_SECONDS: Final = 120.0  # without any progress; then a run gives up
#: The same where somebody sits before it: a mistyped host should not take minutes to be told.
TERMINAL_RETRY_SECONDS: Final = 20.0
#: The same in a pod: one that fails marks its NIMCache Failed for good, whatever the next pods do.
POD_RETRY_SECONDS: Final = 900.0
DEFAULT_BACKOFF_MS: Final = 1000.0  # where NIM_SDK_DOWNLOAD_MAX_RETRY_COUNT comes without an interval
#: NIM's names (VLM configuration page) and Python's.
_LEVELS: Final = {
    "DEFAULT": Level.INFO,
    "TRACE": Level.DEBUG,
    "DEBUG": Level.DEBUG,
    "INFO": Level.INFO,
    "WARNING": Level.WARNING,
    "WARN": Level.WARNING,
    "ERROR": Level.ERROR,
    "CRITICAL": Level.ERROR,
}
_SDK: Final = (
    "NIM_SDK_USE_NATIVE_TLS",
    "NIM_SDK_DOWNLOAD_MAX_RETRY_COUNT",
    "NIM_SDK_DOWNLOAD_BACKOFF_INTERVAL_MS",
)
MOST_CONNECTIONS: Final = 256
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
#: Names under which a secret was meant to be found, and the one under which it is.
_MISNAMED: Final = (
    (re.compile(r"(NGC|NVIDIA).*(KEY|TOKEN)", re.IGNORECASE), NGC_KEY_VARIABLES, "NGC_API_KEY"),
    (re.compile(r"(HF|HUGGING).*(TOKEN|KEY)", re.IGNORECASE), HF_TOKEN_VARIABLES, "HF_TOKEN"),
)
_NO_SECRET: Final = re.compile(r".*_(PATH|FILE|DIR|URL|ENDPOINT)", re.IGNORECASE)
_PLACE: Final = re.compile(r"([\w.-]+|\[[\da-fA-F:]+\])(:\d+)?(/[\w./~-]*)?", re.ASCII)  # host[:port][/path]
_SHORTEST_SECRET: Final = 8  # characters; what is shorter is a flag


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says. Paths are text as given; keys never appear in ``repr``.

    ``warnings``: what a reader of the log should know; ``doubts``: those about credentials. Who reads
    the hints: ``nimcache``, the author of one; ``drop_in``, who called one of a container's commands, which
    do not have nimpull's options. ``pod``: the host's name, which is a pod's own; ``pod_index``: its number
    in an Indexed Job.
    """

    cache_path: str = ""
    ngc_home: str = ""
    hf_home: str = ""
    hf_cache: str = ""
    hf_offline: bool = False
    ngc_key: str = field(default="", repr=False)
    ngc_api: str = "https://api.ngc.nvidia.com"
    ngc_auth: str = "https://authn.nvidia.com"
    hf_token: str = field(default="", repr=False)
    hf_endpoint: str = "https://huggingface.co"
    manifest_path: str = ""
    unsafe_manifest: bool = False
    model_profile: str = ""
    tags_selector: str = ""
    gpus: str = ""
    ca_files: tuple[str, ...] = ()
    ca_directories: tuple[str, ...] = ()
    proxies: Proxies = NO_PROXIES
    jsonl_logging: bool = False
    log_level: Level = Level.INFO
    metrics: str = ""  # where they go, "" = beside the report in the store
    kubernetes_api: tuple[str, str] | None = None  # host and port, where the end of a run is told as an Event
    termination_log: str = TERMINATION_LOG
    retry_seconds: float = DEFAULT_RETRY_SECONDS
    connections: int | None = None
    memory_limit: int | None = None
    repository_override: str = field(default="", repr=False)
    s3_endpoint: str = ""
    s3_region: str = ""
    model_path: str = ""
    scratch: str = ""
    no_symlinks: bool = False
    ignore_download_failure: bool = False
    disable_download: bool = False
    warnings: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    nimcache: bool = False
    pod: str = ""
    pod_index: int | None = None
    drop_in: bool = False
    report_path: str = ""  # where the report was asked for, "" = in the store
    metrics_path: str = ""  # where the metrics were asked for; "" = ``metrics`` says

    @property
    def manifest_paths(self) -> tuple[str, ...]:
        """Where a manifest may be, in order. A path that was given is the only one."""
        return (self.manifest_path,) if self.manifest_path else MANIFEST_PATHS

    @property
    def offline(self) -> str:
        """The variable by which NIM's commands must not ask the network, "" = none."""
        return "NIM_DISABLE_MODEL_DOWNLOAD" if self.disable_download else ""

    @property
    def hub_cache(self) -> str:
        """As huggingface_hub has it: ``HF_HUB_CACHE``, else ``$HF_HOME/hub``."""
        home = self.hf_home or f"{self.cache_path or DEFAULT_CACHE}/huggingface"
        return self.hf_cache or f"{home}/hub"


def load(environ: Mapping[str, str], *, terminal: bool = False) -> Settings:
    """Read the variables. Raises UsageError for one whose value cannot be meant.

    ``terminal``: a person waits for the command.
    """
    scheme = environ.get("NGC_API_SCHEME", "").strip() or "https"
    ngc_key, ngc_doubts = _secret(environ, NGC_KEY_VARIABLES)
    hf_token, hf_doubts = _secret(environ, HF_TOKEN_VARIABLES)
    # The operator's samples have jfrog:// in NIM_REPOSITORY_OVERRIDE; it is no mirror, but an endpoint like
    # NGC's.
    override, artifactory = _artifactory(environ, scheme)
    doubts = (*ngc_doubts, *hf_doubts, *_misnamed(environ), *_swapped(ngc_key, hf_token))
    return Settings(
        cache_path=cache_path(environ),
        ngc_home=_text(environ, "NGC_HOME"),
        hf_home=_text(environ, "HF_HOME"),
        hf_cache=_text(environ, "HF_HUB_CACHE") or _text(environ, "HUGGINGFACE_HUB_CACHE"),
        hf_offline=_flag(environ, "HF_HUB_OFFLINE"),
        ngc_key=ngc_key,
        ngc_api=_endpoint(environ, "NGC_API_ENDPOINT", artifactory or "api.ngc.nvidia.com", scheme),
        ngc_auth=_endpoint(environ, "NGC_AUTH_ENDPOINT", artifactory or "authn.nvidia.com", scheme),
        hf_token=hf_token,
        hf_endpoint=_endpoint(environ, "HF_ENDPOINT", "huggingface.co", "https"),
        manifest_path=_text(environ, "NIM_MANIFEST_PATH"),
        unsafe_manifest=_flag(environ, "NIM_MANIFEST_ALLOW_UNSAFE"),
        model_profile=_text(environ, "NIM_MODEL_PROFILE") or _text(environ, "NIM_MANIFEST_PROFILE"),
        tags_selector=_text(environ, "NIM_TAGS_SELECTOR"),
        gpus=_text(environ, "NIMPULL_GPUS"),
        ca_files=tuple(value for name in CA_VARIABLES if (value := _text(environ, name))),
        ca_directories=tuple(filter(None, _text(environ, "SSL_CERT_DIR").split(os.pathsep))),
        proxies=Proxies.parse(
            http=_either_case(environ, "HTTP_PROXY"),
            https=_either_case(environ, "HTTPS_PROXY"),
            everything=_either_case(environ, "ALL_PROXY"),
            no_proxy=_either_case(environ, "NO_PROXY"),
        ),
        jsonl_logging=_flag(environ, "NIM_JSONL_LOGGING"),
        metrics=_text(environ, "NIMPULL_METRICS"),
        kubernetes_api=_kubernetes_api(environ),
        log_level=_LEVELS.get(_text(environ, "NIM_LOG_LEVEL").upper(), Level.INFO),
        termination_log=termination_log(environ),
        retry_seconds=_number(environ, "NIMPULL_RETRY_SECONDS", _retry_seconds(environ, terminal), "seconds"),
        connections=_connections(environ),
        memory_limit=_bytes(environ, "NIMPULL_MEMORY_LIMIT"),
        repository_override=override,
        s3_endpoint=_text(environ, "AWS_ENDPOINT_URL_S3") or _text(environ, "AWS_ENDPOINT_URL"),
        s3_region=_text(environ, "AWS_REGION") or _text(environ, "AWS_DEFAULT_REGION"),
        model_path=native_path(environ),
        scratch=_text(environ, "NIMPULL_SCRATCH") or _text(environ, "TMPDIR") or "/tmp",  # noqa: S108 - a private directory is made in it
        no_symlinks=_flag(environ, "HF_HUB_DISABLE_SYMLINKS"),
        ignore_download_failure=_flag(environ, "NIM_IGNORE_MODEL_DOWNLOAD_FAIL"),
        disable_download=_flag(environ, "NIM_DISABLE_MODEL_DOWNLOAD"),
        warnings=(*doubts, *_no_level(environ), *_unknown(environ)),
        doubts=doubts,
        nimcache=in_pod(environ),
        pod=os.uname().nodename,
        pod_index=_index(environ),
    )


def _text(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip()


def _index(environ: Mapping[str, str]) -> int | None:
    """Of this pod in an Indexed Job: Kubernetes sets it."""
    text = _text(environ, "JOB_COMPLETION_INDEX")
    return int(text) if text.isdecimal() and len(text) < 10 else None


def hub_in(store: str, home: str) -> str:
    """``home``/hub (HF_HOME or NGC_HOME) below the store; "" where it is elsewhere, or not set."""
    # By text alone: the store may not be there yet.
    inside = os.path.relpath(home, store) if home else ".."
    return "" if inside.split("/")[0] == ".." else os.path.normpath(f"{inside}/hub")


def _no_level(environ: Mapping[str, str]) -> tuple[str, ...]:
    level = _text(environ, "NIM_LOG_LEVEL")
    if not level or level.upper() in _LEVELS:
        return ()
    return (f"NIM_LOG_LEVEL={display(level, 40)} is no level, INFO is taken; known are {', '.join(_LEVELS)}",)


def _number(environ: Mapping[str, str], name: str, default: float, unit: str) -> float:
    value = _text(environ, name)
    if not value:
        return default
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    # float() takes "nan" and "inf", too.
    if not 0 <= number < math.inf:
        raise UsageError(f"{name} is no number of {unit}", hint=f"Set {name} to 120, for example.")
    return number


def _connections(environ: Mapping[str, str]) -> int | None:
    number = _number(environ, "NIMPULL_CONNECTIONS", 0.0, "connections")
    if number and number not in range(1, MOST_CONNECTIONS + 1):
        raise UsageError(
            "NIMPULL_CONNECTIONS is no number of connections",
            hint=f"Set NIMPULL_CONNECTIONS to a whole number, 1 to {MOST_CONNECTIONS}.",
        )
    return int(number) or None


def _bytes(environ: Mapping[str, str], name: str) -> int | None:
    value = _text(environ, name)
    try:
        return (parse_quantity(value) or None) if value else None
    except ValueError as error:
        raise UsageError(f"{name} is {error}", hint=f"Set {name} to 512Mi, for example.") from error


def _retry_seconds(environ: Mapping[str, str], terminal: bool) -> float:
    """NIM counts retries, nimpull the time without progress: 0 retries are none, more only extend it.

    The manifest's own count is 0 by default in NIM, for its listing only: it can but extend the time.
    """
    # Both counts are NIM's per file or listing; here they only say how long to be patient.
    count = _number(environ, "NIM_SDK_DOWNLOAD_MAX_RETRY_COUNT", 1.0, "retries")
    wait = _number(environ, "NIM_SDK_DOWNLOAD_BACKOFF_INTERVAL_MS", DEFAULT_BACKOFF_MS, "milliseconds")
    listing = _number(environ, "NIM_MANIFEST_DOWNLOAD_MAX_RETRY_COUNT", 0.0, "retries")
    pause = _number(environ, "NIM_MANIFEST_DOWNLOAD_WAIT_INTERVAL_MS", DEFAULT_BACKOFF_MS, "milliseconds")
    default = TERMINAL_RETRY_SECONDS if terminal else DEFAULT_RETRY_SECONDS
    if in_pod(environ):
        default = POD_RETRY_SECONDS
    return max(default, count * wait / 1000, listing * pause / 1000) if count else 0.0


def _kubernetes_api(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Of the cluster that the pod is in (Kubernetes, "Accessing the Kubernetes API from a Pod")."""
    host, port = _text(environ, "KUBERNETES_SERVICE_HOST"), _text(environ, "KUBERNETES_SERVICE_PORT")
    return (host, port or "443") if host and _flag(environ, "NIMPULL_KUBERNETES_EVENTS") else None


def _unknown(environ: Mapping[str, str]) -> tuple[str, ...]:
    """What may tune NIM's own downloader, and does nothing here."""
    names = sorted(name for name in environ if name.startswith("NIM_SDK_") and name not in _SDK)
    return tuple(f"{display(name, 80)} is not known to nimpull and has no effect" for name in names)


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return _text(environ, name).lower() in _TRUE


def _either_case(environ: Mapping[str, str], name: str) -> str:
    """The lower-case form wins, as in curl and urllib; the operator sets both, "" when not given."""
    return _text(environ, name.lower()) or _text(environ, name)


def _endpoint(environ: Mapping[str, str], name: str, default: str, scheme: str) -> str:
    """With or without scheme, with or without a path prefix, as Artifactory and other mirrors have one."""
    # NIM and NGC's own tools write hosts without a scheme; paths of mirrors are kept.
    value = _text(environ, name).rstrip("/") or default
    if "://" not in value:
        value = f"{scheme}://{value}"
    if not value.lower().startswith(("http://", "https://")):
        raise UsageError(f"{name} is not an http(s) address", hint=f"Set {name} to https://host[/path].")
    return value


def _artifactory(environ: Mapping[str, str], scheme: str) -> tuple[str, str]:
    """(NIM_REPOSITORY_OVERRIDE, "") for a mirror; ("", endpoint) for ``jfrog://``, which answers as NGC does.

    JFrog's documentation, "Connect Your NVIDIA NIM Model Client to Artifactory": both endpoints of NGC are
    HOST/artifactory/api/nimmodel/REPOSITORY, or what a reverse proxy maps to that. Raises UsageError.
    """
    override = _text(environ, "NIM_REPOSITORY_OVERRIDE")
    kind, _, place = override.partition("://")
    if kind.lower() != "jfrog":
        return override, ""
    if _text(environ, "NGC_API_ENDPOINT"):
        return "", ""  # says it already
    place = place.strip("/")
    if not _PLACE.fullmatch(place):
        raise UsageError(
            "NIM_REPOSITORY_OVERRIDE=jfrog://… is not a host with a path",
            hint="The form is jfrog://HOST[:PORT]/artifactory/api/nimmodel/REPOSITORY; its token goes into "
            "NGC_API_KEY.",
        )
    return "", f"{scheme}://{place}"


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
        # echo secret | kubectl create secret --from-file keeps the line feed.
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
        f"{display(name, 80)} is set but nothing reads it; did you mean {right}?"
        for like, known, right in _MISNAMED
        if not any(_text(environ, name) for name in known)
        for name, value in sorted(environ.items())
        if like.search(name) and name not in known and not _NO_SECRET.fullmatch(name)
        if len(value.strip()) >= _SHORTEST_SECRET
    )


def _swapped(ngc_key: str, hf_token: str) -> tuple[str, ...]:
    return tuple(
        f"{what} begins with {start}, as {whose} do: it may stand under the wrong name"
        for what, secret, start, whose in (
            ("the NGC key", ngc_key, "hf_", "tokens of Hugging Face"),
            ("HF_TOKEN", hf_token, "nvapi-", "keys of NGC"),
        )
        if secret.startswith(start)
    )


def from_process(derived: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None) -> Settings:
    """The environment of this process; ``derived`` from it and above it: a NIMCache's ``spec.env``."""
    environ = {**os.environ, **(derived(os.environ) if derived else {})}
    return load(environ, terminal=os.isatty(0) or os.isatty(2))


def termination_log(environ: Mapping[str, str] = os.environ) -> str:
    """Alone too: the message has to be written even where the other variables cannot be read."""
    return _text(environ, "NIMPULL_TERMINATION_LOG") or TERMINATION_LOG


def is_dumb_terminal(environ: Mapping[str, str] = os.environ) -> bool:
    """It moves no cursor (terminfo's ``dumb``: a shell inside an editor, a CI log)."""
    return environ.get("TERM") == "dumb"


def is_ascii_only(environ: Mapping[str, str] = os.environ) -> bool:
    """The reader asked for the C locale by name, or has a dumb terminal. Python's own encoding does not say:
    it turns C into UTF-8 (PEP 538), by an LC_CTYPE of its own beside the LANG that was given. No locale at
    all says nothing: that is the usual container.
    """
    names = [environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")]  # in the order of POSIX
    # What Python itself put there; what was given stands in LANG.
    if names[1] == "C.UTF-8":
        del names[1]
    return next(filter(None, names), "") in ("C", "POSIX") or is_dumb_terminal(environ)


def in_pod(environ: Mapping[str, str] = os.environ) -> bool:
    """Likewise; kubelet sets the variable in every container."""
    return bool(_text(environ, "KUBERNETES_SERVICE_HOST"))


def cache_path(environ: Mapping[str, str] = os.environ) -> str:
    """Alone too: a failure is reported in the store even where the other variables cannot be read."""
    # some old NIMs know NGC_HOME only (release notes of the NIM Operator 2.0.2)
    return _text(environ, "NIM_CACHE_PATH") or os.path.dirname(_text(environ, "NGC_HOME").rstrip("/"))


def native_path(environ: Mapping[str, str] = os.environ) -> str:
    """Likewise, where a native NIM's model goes."""
    return _text(environ, "NIM_ENGINE_MODEL_PATH")


def download_only_is_set() -> bool:
    """NIM_ENGINE_MODEL_DOWNLOAD_ONLY: a start without a command is a download."""
    return _flag(os.environ, "NIM_ENGINE_MODEL_DOWNLOAD_ONLY")
