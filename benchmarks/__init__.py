"""trionfq beside its peers: ``make bench``. See docs/performance.md."""
