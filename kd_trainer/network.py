"""Whether the hub answers at its address: asked once, where its client would try for half a minute."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants

from .errors import InputError

PORTS = {"http": 80, "https": 443}


def why_unreachable(endpoint=None, seconds=5.0):
    """
    Why no connection to the hub can be made.

    Args:
        endpoint (`str`, *optional*): Its address, as `HF_ENDPOINT`.
        seconds (`float`, *optional*, defaults to 5.0): How long one connection may take.

    Returns:
        `str` or None: None where it can, and where a proxy stands between, which alone knows.

    Raises:
        `InputError`: For what is no address.
    """
    url = urlsplit(endpoint or constants.ENDPOINT)
    if url.scheme not in PORTS or not url.hostname:
        raise InputError(f"HF_ENDPOINT {endpoint or constants.ENDPOINT} is no address: give https://HOST")
    if not getproxies().keys().isdisjoint({url.scheme, "all"}) and not proxy_bypass(url.hostname):
        return None
    try:
        socket.create_connection((url.hostname, url.port or PORTS[url.scheme]), timeout=seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
