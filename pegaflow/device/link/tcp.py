"""The TCP transport: its owner and its reader, by the names that every transport has.

Several streams carry a read, each with a thread at either end that does little but wait in the
kernel: `sendmsg` straight from the owner's pool, `recvmsg` straight into the reader's, megabytes at
a time. The frames are in tcpframes.py.  Bytes travel in the clear unless both sides are given a TLS
context; that a stream is who it says is proven in either case, by the token.
"""

from .tcpowner import TcpOwner
from .tcpreader import TcpReader

__all__ = ["TcpOwner", "TcpReader"]
