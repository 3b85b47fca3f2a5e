"""Webhooks: the operator's own front end is told of sessions and of credentials that are ready.

`events` says what is told, in which shape; the store writes it in the transaction of the change
itself. `deliveries` queues it for each endpoint, a lane of `lanes` sends that in the background,
`posting` one request of it, signed by `signing`, at the times that `schedule` says.
"""
