"""A ``NIMCache`` (apps.nvidia.com/v1alpha1) as values: what its CRD refuses is refused here too."""

from nimpull.core.nimcache.parsing import parse_nimcache
from nimpull.core.nimcache.values import HubRepository, NgcModels, NimCache, expand

__all__ = ["HubRepository", "NgcModels", "NimCache", "expand", "parse_nimcache"]
