"""A ``NIMCache`` (apps.nvidia.com/v1alpha1) as values, under the rules and messages of its CRD and webhook.

What the cluster would refuse but what does not matter for a download here (a missing ``modelPuller``, say)
is a note, not an error. Source of the rules: the CRD's validation markers and the operator's webhook.
"""

from nimpull.core.nimcache.parsing import parse_nimcache
from nimpull.core.nimcache.values import HubSource, NgcSource, NimCache, expand

__all__ = ["HubSource", "NgcSource", "NimCache", "expand", "parse_nimcache"]
