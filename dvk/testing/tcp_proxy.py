"""A TCP proxy that breaks connections on command, to stand before a real server.

    with TcpProxy(server.address.port) as proxy:
        environ = aws_env(proxy.endpoint_url)
        proxy.cut_after(bytes_up=1_000_000)     # the connection that carries the millionth byte breaks
        ...
        proxy.refuse()                          # nobody listens any more, and live connections break
        ...
        proxy.heal()

A broken connection is reset (RST), as by a dying middlebox, so that no side takes it for an orderly end.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

_CHUNK = 64 << 10


class TcpProxy:
    """Listens on a loopback port and passes bytes on to `port` of the same machine, until told otherwise."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._up_left: int | None = None
        self._down_left: int | None = None
        self._then_refuse = False
        self._refusing = False
        self._closed = False
        self.bytes_up = 0
        self.bytes_down = 0
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> TcpProxy:
        self._spawn(self._accept, self._listener)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def cut(self) -> None:
        """Reset every connection there is now; new ones work."""
        with self._lock:
            live, self._live = self._live, set()
        for s in live:
            reset(s)

    def cut_after(
        self, *, bytes_up: int | None = None, bytes_down: int | None = None, then_refuse: bool = False
    ) -> None:
        """Reset the connection that carries that many bytes, counted from now over all; once.

        With `then_refuse` no other connection works until `heal`. Without it, mind that HTTP clients silently
        repeat an idempotent request once on a new connection.
        """
        with self._lock:
            self._up_left, self._down_left = bytes_up, bytes_down
            self._then_refuse = then_refuse

    def refuse(self) -> None:
        """Reset every connection, now and as soon as one is made, until `heal`."""
        self._refusing = True
        self.cut()

    def heal(self) -> None:
        """Pass everything on again."""
        with self._lock:
            self._up_left = self._down_left = None
        self._refusing = False

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self._refusing or self._closed:
                reset(client)
                continue
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                reset(client)
                continue
            server.settimeout(None)
            with self._lock:
                self._live |= {client, server}
            self._spawn(self._pump, client, server, True)
            self._spawn(self._pump, server, client, False)

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        """Pass on until an end is reached, or the budget of bytes is spent."""
        try:
            while data := source.recv(_CHUNK):
                allowed, cut = self._spend(len(data), up)
                sink.sendall(data[:allowed])
                if cut:
                    self._drop(source, sink)
                    if self._refusing:
                        self.cut()
                    return
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(source, sink)

    def _spend(self, n: int, up: bool) -> tuple[int, bool]:
        with self._lock:
            if up:
                self.bytes_up += n
            else:
                self.bytes_down += n
            left = self._up_left if up else self._down_left
            if left is None:
                return n, False
            left -= n
            cut = left <= 0
            rest = None if cut else left
            if up:
                self._up_left = rest
            else:
                self._down_left = rest
            if cut:
                self.cuts += 1
                self._refusing = self._then_refuse
            return (n + left if cut else n), cut

    def _drop(self, *sockets: socket.socket) -> None:
        with self._lock:
            self._live.difference_update(sockets)
        for s in sockets:
            reset(s)

    def _spawn(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()


def reset(s: socket.socket) -> None:
    """Close a connection with RST, as dying middleboxes do. `shutdown` first: it wakes who sits in `recv`."""
    with contextlib.suppress(OSError):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        s.shutdown(socket.SHUT_RD)
    with contextlib.suppress(OSError):
        s.close()
