"""Carry the screen of a VM: from a browser's WebSocket straight to the VM's RFB port.

websocket_takeover  uvicorn makes the handshake, then hands the connection over with its socket
tls_proxy           under TLS, the bytes between that connection and the socket that the relay gets
frames              what is on the wire, as pure functions: headers, close frames, a frame reader
close_reasons       why a viewer's connection ends: codes, and words that a viewer can show
keepalive           one timer for the pings of all viewers
viewer              the WebSocket of one viewer: frames out, bytes in, pings, the closing handshake
spectator_filter    what a read-only viewer may say to its VM
forwarding          bytes both ways between a viewer and its VM, each way as fast as the slower end
splice              pipes through which the kernel moves large updates without a copy
viewers             the viewers of each session: who is there, and whose session is over
limits              how many viewers there may be, and how much they may send
metrics             the relay's metrics for Prometheus
"""
