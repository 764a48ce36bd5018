"""What a NIMCache says, as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nimpull.core.criteria import Criteria
from nimpull.core.names import ModelUri, Url

VARIABLE: Final = re.compile(r"\$(\$|\(([^)]*)\))")


@dataclass(frozen=True, slots=True)
class NgcModels:
    """``spec.source.ngc``: ``model`` as criteria over a manifest, or a ``modelEndpoint`` (universal NIM)."""

    criteria: Criteria
    endpoint: ModelUri | None = None


@dataclass(frozen=True, slots=True)
class HubRepository:
    """``spec.source.hf`` or ``.dataStore``; ``uri`` has the revision, else ``main``."""

    endpoint: Url
    uri: ModelUri


@dataclass(frozen=True, slots=True)
class EnvVariable:
    """One of ``spec.env``; ``reference``: where the cluster reads it (``secret extra, key token``)."""

    name: str
    value: str = field(default="", repr=False)
    reference: str = ""


@dataclass(frozen=True, slots=True)
class NimCache:
    """What a pull needs of it.

    ``room``: bytes that ``spec.storage.pvc.size`` promises, None = not given. ``proxy``: ``spec.proxy`` by
    what its variables begin with, ``https``, ``http`` and ``no``. ``notes``: what the cluster would refuse or
    do differently, in plain words.
    """

    source: NgcModels | HubRepository
    room: int | None = None
    env: tuple[EnvVariable, ...] = ()
    proxy: Mapping[str, str] | None = field(default=None, repr=False)  # may hold a password
    notes: tuple[str, ...] = ()

    def environment(self, own: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables for the pull: ``spec.env``, and over it ``spec.proxy``'s, as in the caching Job.

        With a proxy all seven are set, "" for what is not given. Variables that the cluster reads from a
        secret or a config map are left to ``own``, the caller's environment; ``$(NAME)`` is an earlier entry.
        """
        own, variables, known = own or {}, dict[str, str](), dict[str, str]()
        for item in self.env:
            if not item.reference:
                variables[item.name] = known[item.name] = expand(item.value, known)
            # Its value is here, though not in the NIMCache: later entries may refer to it.
            elif item.name in own:
                known[item.name] = own[item.name]
        if self.proxy is not None:
            # The operator sets all of them, and "" undoes what spec.env says of a proxy.
            variables["NIM_SDK_USE_NATIVE_TLS"] = "1"
            for name, value in self.proxy.items():
                variables[f"{name.upper()}_PROXY"] = variables[f"{name}_proxy"] = value
        return variables


def expand(text: str, known: Mapping[str, str]) -> str:
    """``$(NAME)`` in the value of a container's variable; ``$$`` is a dollar sign.

    A name that is not known stays as it is written (Kubernetes API, EnvVar.value).
    """
    return VARIABLE.sub(lambda found: "$" if found[1] == "$" else known.get(found[2], found[0]), text)
