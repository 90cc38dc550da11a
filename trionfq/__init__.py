"""NFQUEUE for trio."""
