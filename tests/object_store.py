"""An S3 server on loopback with a proxy before it that fails on request.

The server is moto's. Prints the proxy's port; then reads commands from standard
input, one a line, and answers each with a line:

    fault KIND COUNT [TEXT]   the next COUNT requests whose line holds TEXT fail as KIND:
                              500, truncated, slow, expired
    requests                  what was asked for since the last such command, as JSON:
                              [method, path, range, status, fault]
"""

import http.client
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

EXPIRED = (
    b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code>"
    b"<Message>The provided token has expired.</Message><Token-0>secret-of-the-test</Token-0></Error>"
)
lock = threading.Lock()
faults = []
seen = []


def next_fault(line):
    with lock:
        for fault in faults:
            if fault[1] > 0 and fault[2] in line:
                fault[1] -= 1
                return fault[0]
    return None


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = next_fault(self.requestline)
        status, headers, content = 500, [], b"<Error><Code>InternalError</Code><Message>made up</Message></Error>"
        if fault == "expired":
            status, content = 400, EXPIRED
        elif fault != "500":
            upstream = http.client.HTTPConnection("127.0.0.1", moto_port)
            upstream.request(self.command, self.path, body, dict(self.headers))
            response = upstream.getresponse()
            status, headers, content = response.status, response.getheaders(), response.read()
            upstream.close()
        length = len(content)
        if self.command == "HEAD":
            length = int(dict(headers).get("Content-Length", 0))
            content = b""
        with lock:
            seen.append([self.command, self.path, self.headers.get("Range"), status, fault])
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(content[: length // 2])
            self.close_connection = True
        elif fault == "slow":
            # Drop by drop: ten pieces in two seconds.
            step = max(1, length // 10)
            for start in range(0, length, step):
                time.sleep(0.2)
                self.wfile.write(content[start : start + step])
                self.wfile.flush()
        else:
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer


server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
moto_port = server.get_host_and_port()[1]
create = http.client.HTTPConnection("127.0.0.1", moto_port)
create.request("PUT", "/bucket", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"})
assert create.getresponse().status == 200
proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
threading.Thread(target=proxy.serve_forever, daemon=True).start()
print(proxy.server_address[1], flush=True)

for line in sys.stdin:
    words = line.split(maxsplit=3)
    with lock:
        if words[0] == "fault":
            faults[:] = [[words[1], int(words[2]), words[3].strip() if len(words) > 3 else ""]]
            print("ok", flush=True)
        elif words[0] == "requests":
            print(json.dumps(seen), flush=True)
            seen.clear()
sys.stdout.flush()
server.stop()
