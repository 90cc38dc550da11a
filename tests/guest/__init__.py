"""The kernel tests on a second kernel: Debian's 6.1, booted for the run."""
