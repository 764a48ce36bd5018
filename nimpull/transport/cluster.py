"""The end of a run as a Kubernetes Event of its pod, and as an annotation of the Job that owns the pod.

Only where it was asked for, and only as far as the service account may: what is forbidden is no failure.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any, Final

from nimpull.core.redaction import clean
from nimpull.core.report.contents import Report, State
from nimpull.core.report.sentences import closing_line

#: Where kubelet mounts the service account; Kubernetes, "Accessing the Kubernetes API from a Pod".
SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
PATIENCE: Final = 3.0  # seconds for an answer: the end of a pod does not wait long for its own news
MESSAGE_LIMIT: Final = 1000  # bytes; the API server takes 1024 of an Event's message
_REFUSED: Final = frozenset({401, 403, 404})  # no such right, or no such pod or job any more


def announce(report: Report, pod: str, *, host: str, port: str, account: str = SERVICE_ACCOUNT) -> str:
    """Tell the cluster; ``host`` and ``port`` of its API. Returns why it could not be told, or "".

    "" also where the service account may not: whoever sets the variable for all pods sets it for those too.
    """
    try:
        from kubernetes import client
        from urllib3.exceptions import HTTPError
    except ImportError:
        return "NIMPULL_KUBERNETES_EVENTS needs the extra: pip install 'nimpull[kubernetes]'"
    try:
        with open(os.path.join(account, "namespace"), encoding="utf-8") as file:
            namespace = file.read(256).strip()
        with open(os.path.join(account, "token"), encoding="utf-8") as file:
            token = file.read(1 << 16).strip()
    except OSError as error:
        return f"no Kubernetes Event: cannot read the service account: {error.strerror}"
    with client.ApiClient(_configuration(client, host, port, token, account)) as api:
        try:
            uid, job = _allowed(client, _pod, client.CoreV1Api(api), pod, namespace) or ("", "")
            event = _event(client, report, pod, uid, namespace)
            _allowed(client, client.CoreV1Api(api).create_namespaced_event, namespace, event)
            if job:
                patch = {"metadata": {"annotations": _annotations(report)}}
                _allowed(client, client.BatchV1Api(api).patch_namespaced_job, job, namespace, patch)
        except (client.ApiException, HTTPError, ValueError) as error:
            return f"no Kubernetes Event: {clean(getattr(error, 'reason', None) or error, 300)}"
    return ""


def _configuration(client: Any, host: str, port: str, token: str, account: str) -> Any:
    configuration = client.Configuration(
        host=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        api_key={"authorization": f"Bearer {token}"},
        ssl_ca_cert=os.path.join(account, "ca.crt"),
    )
    configuration.proxy = None  # it took one from the environment; the API is inside of the cluster
    configuration.retries = False
    return configuration


def _allowed(client: Any, call: Any, *arguments: Any) -> Any:
    """What the call returns, None where it is refused. Raises ApiException for other answers."""
    try:
        return call(*arguments, _request_timeout=PATIENCE)
    except client.ApiException as error:
        if error.status in _REFUSED:
            return None
        raise


def _pod(api: Any, pod: str, namespace: str, **options: Any) -> tuple[str, str]:
    """Its uid, and the name of the Job that owns it, "" = none."""
    metadata = api.read_namespaced_pod(pod, namespace, **options).metadata
    owners = [owner.name for owner in metadata.owner_references or () if owner.kind == "Job"]
    return metadata.uid, owners[0] if owners else ""


def _event(client: Any, report: Report, pod: str, uid: str, namespace: str) -> Any:
    now = datetime.fromtimestamp(report.updated, UTC)
    ready = report.state is State.READY
    return client.CoreV1Event(
        metadata=client.V1ObjectMeta(generate_name=f"{pod}.", namespace=namespace),
        involved_object=client.V1ObjectReference(
            api_version="v1", kind="Pod", name=pod, namespace=namespace, uid=uid or None
        ),
        type="Normal" if ready else "Warning",
        reason="ModelReady" if ready else "ModelFailed",
        message=_message(report),
        source=client.V1EventSource(component="nimpull"),
        reporting_component="nimpull",
        reporting_instance=pod,
        first_timestamp=now,
        last_timestamp=now,
        count=1,
    )


def _annotations(report: Report) -> dict[str, str]:
    return {"nimpull/state": report.state.value, "nimpull/message": _message(report)}


def _message(report: Report) -> str:
    return closing_line(report).encode()[:MESSAGE_LIMIT].decode(errors="ignore")
