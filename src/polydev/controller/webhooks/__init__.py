"""Webhooks: messages about sessions and credentials to endpoints such as an operator's front end.

The store writes an event in the transaction of the change itself. `deliveries` queues it for each
endpoint, whose `endpoint_sender` sends it in the background. `http_post` makes one attempt, and
`retry_schedule` has the times of further ones. `webhook_events` and `webhook_signing`, beside this
package, have the messages and their signatures.
"""
