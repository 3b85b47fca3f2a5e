"""Releases, on the operator's side: what is deployed, and what is done when that goes wrong."""
