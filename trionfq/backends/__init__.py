"""Where datagrams come from: the kernel's socket, a capture, or anything else behind the seam."""

from trionfq.backends._abc import Backend, QueueRow, Received

__all__ = ["Backend", "QueueRow", "Received"]
