"""L6 notify: the readiness protocol of systemd (sd_notify), a datagram each. Any thread; waits 1 s."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> bool:
    """Send lines such as 'READY=1' to the supervisor, if there is one. Says whether they went out."""
    address = os.environ.get('NOTIFY_SOCKET', '')
    if not address.startswith(('/', '@')):
        return False
    if address.startswith('@'):
        address = '\0' + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(1.0)
            sender.connect(address)
            sender.send('\n'.join(lines).encode())
    except OSError:
        return False  # a supervisor that does not listen must not keep a file system from working
    return True
