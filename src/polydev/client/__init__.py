"""The operator's side of a controller: its API, its command line over SSH, and the doctor."""
