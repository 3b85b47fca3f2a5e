"""From a browser's WebSocket straight to its VM's RFB port, without a second hop.

takeover    uvicorn makes the handshake, then hands the connection over with its socket
far_end     under TLS, the bytes between that connection and the socket that the relay gets
frames      what is on the wire, as pure functions: headers, closings, a reader of frames
closings    how a viewer's connection ends, in codes and words that it can show
beat        one timer for the pings of all viewers
viewer      the WebSocket: frames out, bytes in, pings, the closing handshake
spectator   what a read-only viewer may say to its VM
pump        bytes both ways between a viewer and its VM, each way as fast as the slower end
pipes       pipes through which the kernel moves large updates, copying nothing
seats       who looks at which session: how many may, and whose session is over
figures     what Prometheus is told of them
"""
