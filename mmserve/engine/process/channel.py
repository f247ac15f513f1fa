"""Messages over a pair of sockets: pickled, each behind its length in eight bytes.

Pickle is safe here: the pair has no name, and only the two processes have its ends.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct

_LENGTH = struct.Struct("!Q")
_JOINED = 64 * 1024


class ChannelClosed(Exception):
    """The other side is gone; ``torn`` says that it went in the middle of a message."""

    def __init__(self, *, torn: bool = False) -> None:
        super().__init__("the other side ended in the middle of a message" if torn else "the other side has ended")
        self.torn = torn


def encode(message: object) -> tuple[bytes, ...]:
    """The message as it travels: one piece, or two where joining them would copy a picture once more."""
    body = pickle.dumps(message, protocol=5)
    header = _LENGTH.pack(len(body))
    return (header + body,) if len(body) < _JOINED else (header, body)


def receive(sock: socket.socket) -> object:
    """The next message, for which this blocks its thread. Raises ``ChannelClosed``."""
    header = _exactly(sock, _LENGTH.size, begun=False)
    return pickle.loads(_exactly(sock, _LENGTH.unpack(header)[0], begun=True))


def _exactly(sock: socket.socket, count: int, *, begun: bool) -> bytearray:
    """``count`` bytes, each copied once."""
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        try:
            got = sock.recv_into(rest)
        except OSError:
            got = 0
        if not got:
            raise ChannelClosed(torn=begun or len(rest) < count)
        rest = rest[got:]
    return data


async def receive_from(reader: asyncio.StreamReader) -> object:
    """``receive``, for an event loop."""
    begun = False
    try:
        header = await reader.readexactly(_LENGTH.size)
        begun = True
        return pickle.loads(await reader.readexactly(_LENGTH.unpack(header)[0]))
    except asyncio.IncompleteReadError as error:
        raise ChannelClosed(torn=begun or bool(error.partial)) from None
    except OSError:
        raise ChannelClosed(torn=begun) from None
