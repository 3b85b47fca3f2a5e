"""In the agent's place: 500 to every request."""

import socket

ANSWER = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

with socket.create_server(("0.0.0.0", 8080)) as listener:
    while True:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            client.sendall(ANSWER)
