"""The verbs of `master-controller`, the command line of the controller on its host."""
