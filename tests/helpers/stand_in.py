"""A stand-in for Cloud Storage on this machine, which tests ask; it stores nothing."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class StandIn(ThreadingHTTPServer):
    """A bucket named "bucket": reading, ranges and listing of the JSON interface.

    `objects` holds its files, `failures` the status of the next answers, `always` that
    of all to clients named like `client`, `asked` the [path, range, bytes sent] of each
    request.
    """

    daemon_threads = True
    request_queue_size = 128  # as many may connect at once

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.clear()

    def clear(self):
        self.objects, self.failures, self.asked = {}, [], []
        self.always, self.client = None, ""

    def handle_error(self, request, client_address):
        pass  # a client that has broken off a connection

    def upload(self, folder, prefix):
        for path in folder.iterdir():
            self.objects[f"{prefix}/{path.name}"] = path.read_bytes()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True

    def do_GET(self):
        bucket = self.server
        url = urlsplit(self.path)
        _, _, name = unquote(url.path).partition("/b/bucket/o/")
        span = self.headers.get("Range", "")
        status, body, headers = self.answer(url, name, span)
        always = bucket.client in self.headers["User-Agent"] and bucket.always
        if always or bucket.failures:
            status, headers = always or bucket.failures.pop(0), {}
            body = json.dumps({"error": {"code": status, "message": "so\nit is"}})
            body = body.encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        asked = [name or url.path, span, 0]
        bucket.asked.append(asked)
        try:
            while asked[2] < len(body):
                asked[2] += self.connection.send(body[asked[2] :])
        except OSError:
            self.close_connection = True

    def answer(self, url, name, span):
        objects = self.server.objects
        if url.path == "/storage/v1/b/bucket/o":
            query = parse_qs(url.query)
            first, last = (query.get(x, [""])[0] for x in ("startOffset", "endOffset"))
            kept = [x for x in objects if first <= x and (not last or x < last)]
            body = {"items": [{"name": x} for x in reversed(kept)]}
            return 200, json.dumps(body).encode(), {"Content-Type": "application/json"}
        if name not in objects:
            return 404, b'{"error": {"code": 404, "message": "Not Found"}}', {}
        data = objects[name]
        if not span:
            return 200, data, {"x-goog-generation": "1"}
        start, stop = re.fullmatch(r"bytes=(\d*)-(\d*)", span).groups()
        end = len(data)
        if start:
            start, stop = int(start), min(end, int(stop) + 1 if stop else end)
        else:
            start, stop = max(0, end - int(stop)), end
        if start >= end:
            return 416, b"not satisfiable", {"Content-Range": f"bytes */{end}"}
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{end}"}
        return 206, data[start:stop], headers | {"x-goog-generation": "1"}

    def log_message(self, *arguments):
        pass
