"""What a host is made of, as pyinfra deploys: one module per concern.

`host` has the order of them all. Each concern renders its files from `templates/`, and its
units carry the hash of all configuration they were started with, so that the next deploy
restarts what a broken-off one left behind.
"""
