"""The controller: the ASGI service of a host.

request → session → slot → VM is its flow; so far it answers for its own health, which is what a
deployment needs. It runs from a release's own venv and shares nothing with the operator's side.
"""
