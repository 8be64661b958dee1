"""The network card over which ranks reach each other.

Left alone, gloo takes the address that the machine's own name resolves to, which on many (Debian's default) is a
loopback one: ranks on two machines would look for each other at home. Ray knows the address that the others reach.
"""

from __future__ import annotations

import os

VARIABLE = "GLOO_SOCKET_IFNAME"


def speak_over_rays_card() -> None:
    """Have gloo use the card that holds Ray's address of this node, unless the environment names one."""
    import psutil
    import ray

    here = ray.util.get_node_ip_address()
    cards = [name for name, held in psutil.net_if_addrs().items() if any(one.address == here for one in held)]
    if cards:
        os.environ.setdefault(VARIABLE, cards[0])
