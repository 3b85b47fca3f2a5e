"""The verbs, one module for each subject; `tasks.py` collects them.

A verb parses its options, calls polydev and prints. With `--json` it prints one document on stdout
with stable fields; progress goes to stderr. An error ends with status 1 and one message that says
what to do. A verb imports inside its function what only it needs, so that starting is fast.
"""
