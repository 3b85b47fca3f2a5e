"""The verbs by what they are about; `tasks.py` collects them.

Each parses, calls polydev and prints. With `--json` it prints one document on stdout with stable
fields; progress goes to stderr. An error ends with status 1 and one message that says what to do.
What a verb needs is imported inside it: starting to list the verbs must cost nothing.
"""
