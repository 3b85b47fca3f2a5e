"""pyinfra deploys of a host: one module for each concern, such as packages or the network.

`whole_host` runs them in order. Each concern renders its files from `templates/`. Units carry the
hash of the configuration that they were started with, so the next deployment restarts what an
interrupted one left with an old configuration.
"""
