"""For tests of programs, policies and backends."""

from trionfq.testing._messages import (
    make_bind,
    make_config,
    make_packet,
    make_verdict,
    udp_packet,
)

__all__ = ["make_bind", "make_config", "make_packet", "make_verdict", "udp_packet"]
