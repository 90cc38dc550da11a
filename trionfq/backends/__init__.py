"""Where datagrams come from."""
