"""Addresses that no registry has: link-local ones, and those where clouds keep a node's credentials.

A location that leads there would make nimpull fetch, and show, what only the node may see.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

_METADATA: Final = frozenset(
    {
        IPv6Address("fd00:ec2::254"),  # Amazon EC2
        IPv6Address("fd20:ce::254"),  # Google Compute Engine
        IPv4Address("100.100.100.200"),  # Alibaba Cloud
        IPv4Address("192.0.0.192"),  # Oracle Cloud Classic
        IPv4Address("168.63.129.16"),  # Azure's wire server
    }
)
#: What a proxy would resolve to such an address, where nothing is looked up here.
_NAMES: Final = frozenset({"metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"})
_NAT64: Final = ip_network("64:ff9b::/96")  # RFC 6052
_NUMBER: Final = re.compile(r"0x([0-9a-f]{1,16})|(0[0-7]{0,22})|([1-9][0-9]{0,15})", re.IGNORECASE)


def is_internal(address: str) -> bool:
    """Whether ``address``, as a socket is connected to it, is link-local or a cloud's metadata service.

    IPv4 inside IPv6 counts as what it stands for. Text that is no address is not one.
    """
    try:
        found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        # ::ffff:169.254.169.254 and its like reach the same machine.
        inside = found.ipv4_mapped or found.sixtofour
        if inside is None and found in _NAT64:
            inside = IPv4Address(int(found) & 0xFFFFFFFF)
        found = inside or found
    return found.is_link_local or found in _METADATA


@lru_cache(maxsize=256)  # a run asks a few hosts for thousands of files
def names_internal(host: str) -> bool:
    """The same for the host of a URL, without looking it up: a literal in any spelling, or a known name."""
    name = host.rstrip(".").lower()
    return name in _NAMES or is_internal(_dotted(name) or name)


def _dotted(host: str) -> str:
    """An IPv4 address as inet_aton(3) reads it (0xa9fea9fe, 2852039166, 169.254.43518); "" for a name."""
    parts = host.split(".")
    found = [_NUMBER.fullmatch(part) for part in parts]
    if len(parts) > 4 or not all(found):
        return ""
    bases = (16, 8, 10)
    numbers = [
        int(text, base)
        for each in found
        if each
        for text, base in zip(each.groups(), bases, strict=True)
        if text
    ]
    *heads, last = numbers
    if any(head > 255 for head in heads) or last >= 256 ** (4 - len(heads)):
        return ""
    value = last + sum(head << 8 * (3 - place) for place, head in enumerate(heads))
    return str(IPv4Address(value))
