"""Deployments, on the operator's side: change a host, and undo the change if it fails."""
