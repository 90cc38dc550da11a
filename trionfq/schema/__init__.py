"""Declarations of every layout."""
