"""Microsoft's emulator of its blob store, Azurite, on loopback, with a container named `bucket`.

    azure_store.py AZURITE_BLOB

Prints the port; ends when standard input does. Azurite: npm install azurite
"""

import base64
import email.utils
import hashlib
import hmac
import http.client
import socket
import subprocess
import sys
import time

# The account that every Azurite has; not a secret.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-08-06"


def create_container(port):
    date = email.utils.formatdate(usegmt=True)
    signed = f"x-ms-date:{date}\nx-ms-version:{VERSION}\n/{ACCOUNT}/{ACCOUNT}/bucket\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), ("PUT" + "\n" * 12 + signed).encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": VERSION,
        "Content-Length": "0",
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
    }
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", f"/{ACCOUNT}/bucket?restype=container", headers=headers)
    assert connection.getresponse().status == 201


with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
options = ["--blobPort", str(port), "--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
server = subprocess.Popen([sys.argv[1], *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    deadline = time.monotonic() + 60
    while True:
        try:
            create_container(port)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    print(port, flush=True)
    sys.stdin.read()
finally:
    server.terminate()
