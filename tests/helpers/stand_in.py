"""Stand-ins for Cloud Storage and S3 on this machine, which tests ask; no disk."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class StandIn(ThreadingHTTPServer):
    """A bucket named "bucket": the JSON interface to read, list, write and remove.

    `objects` holds its files, `versions` how often each that is not as it was given was
    written, `failures` the status of the next answers, `always` that of all to clients
    named like `client`, `asked` the [path, range, bytes sent] of each request to read
    or list, `changed` the [method, path] of each other one, `before` is told both
    before that is done.
    """

    daemon_threads = True
    request_queue_size = 128  # as many may connect at once

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.handler)
        self.clear()

    @property
    def handler(self):
        return Answer

    def clear(self):
        self.objects, self.failures, self.asked = {}, [], []
        self.before = lambda method, name: None
        self.versions, self.changed, self.changing = {}, [], threading.Lock()
        self.always, self.client, self.count = None, "", 1

    def handle_error(self, request, client_address):
        pass  # a client that has broken off a connection

    def upload(self, folder, prefix):
        for path in folder.rglob("*"):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(folder)}"
                self.objects[name] = path.read_bytes()

    def generation(self, name):
        """Returns the version of a file, 0 of one that is not there."""
        return self.versions.get(name, 1) if name in self.objects else 0

    def change(self, name, content, query):
        """Writes a file, or removes it; returns the status of the answer."""
        with self.changing:
            wanted = query.get("ifGenerationMatch")
            if wanted and int(wanted[0]) != self.generation(name):
                return 412
            if content is None and name not in self.objects:
                return 404
            self.count += 1
            if content is None:
                del self.objects[name]
            else:
                self.objects[name], self.versions[name] = content, self.count
            return 200


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

    def do_POST(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.change(query.get("name", [""])[0], content, query)

    def do_DELETE(self):
        url = urlsplit(self.path)
        _, _, name = unquote(url.path).partition("/b/bucket/o/")
        self.change(name, None, parse_qs(url.query))

    def change(self, name, content, query):
        bucket = self.server
        bucket.before(self.command, name)
        status = bucket.always or (bucket.failures.pop(0) if bucket.failures else 0)
        if "/b/bucket/o" not in self.path:
            status = 404
        status = status or bucket.change(name, content, query)
        bucket.changed.append([self.command, name])
        said = {"name": name, "generation": str(bucket.generation(name))}
        if status != 200:
            said = {"error": {"code": status, "message": "so\nit is"}}
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, url, name, span):
        objects = self.server.objects
        if url.path == "/storage/v1/b/bucket/o":
            query = parse_qs(url.query)
            first, last = (query.get(x, [""])[0] for x in ("startOffset", "endOffset"))
            kept = [x for x in list(objects) if first <= x and (not last or x < last)]
            body = {"items": [{"name": x} for x in reversed(kept)]}
            return 200, json.dumps(body).encode(), {"Content-Type": "application/json"}
        if name not in objects:
            return 404, b'{"error": {"code": 404, "message": "Not Found"}}', {}
        data, version = objects[name], str(self.server.generation(name))
        if "alt=media" not in url.query:  # what there is, and not its content
            about = {"name": name, "generation": version, "size": str(len(data))}
            return 200, json.dumps(about).encode(), {"Content-Type": "application/json"}
        if not span:
            return 200, data, {"x-goog-generation": version}
        start, stop = re.fullmatch(r"bytes=(\d*)-(\d*)", span).groups()
        end = len(data)
        if start:
            start, stop = int(start), min(end, int(stop) + 1 if stop else end)
        else:
            start, stop = max(0, end - int(stop)), end
        if start >= end:
            return 416, b"not satisfiable", {"Content-Range": f"bytes */{end}"}
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{end}"}
        return 206, data[start:stop], headers | {"x-goog-generation": version}

    def log_message(self, *arguments):
        pass


class S3(StandIn):
    """The same of Amazon's interface: paths of the form /bucket/NAME."""

    @property
    def handler(self):
        return AnswerOfS3


class AnswerOfS3(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urlsplit(self.path)
        _, _, name = unquote(url.path).partition("/bucket/")
        bucket, span = self.server, self.headers.get("Range", "")
        bucket.asked.append([name or url.path, span, 0])
        if self._fails() or self._no_bucket():
            return
        if not name:
            first = parse_qs(url.query).get("prefix", [""])[0]
            kept = sorted(x for x in list(bucket.objects) if x.startswith(first))
            found = "".join(f"<Key>{escape(x)}</Key>" for x in kept)
            found = found.replace("<Key>", "<Contents><Key>")
            found = found.replace("</Key>", "</Key><Size>1</Size></Contents>")
            found = f"<IsTruncated>false</IsTruncated>{found}"
            self._say(200, f"<ListBucketResult>{found}</ListBucketResult>".encode())
        elif name not in bucket.objects:
            self._say(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif self._unlike(name):
            self._say(412)
        else:
            self._give(bucket.objects[name], span)

    do_HEAD = do_GET

    def do_PUT(self):
        name, content = self._change()
        if self._fails() or self._no_bucket():
            return
        with self.server.changing:
            fits = not self._unlike(name)
            if fits:
                self.server.objects[name] = content
        self._say(200 if fits else 412, ETag=_tag(content))

    def do_DELETE(self):
        name, _ = self._change()
        if self._fails() or self._no_bucket():
            return
        self.server.objects.pop(name, None)
        self._say(204)

    def _change(self):
        _, _, name = unquote(urlsplit(self.path).path).partition("/bucket/")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.before(self.command, name)
        self.server.changed.append([self.command, name])
        return name, content

    def _unlike(self, name):
        """Tells whether the file is not the one that the request is for."""
        held = self.server.objects.get(name)
        wanted = self.headers.get("If-Match")
        if wanted and (held is None or _tag(held) != wanted):
            return True
        return self.headers.get("If-None-Match") == "*" and held is not None

    def _fails(self):
        bucket = self.server
        status = bucket.always or (bucket.failures.pop(0) if bucket.failures else 0)
        if status:
            code = {403: "AccessDenied"}.get(status, "Failure")
            self._say(status, f"<Error><Code>{code}</Code></Error>".encode())
        return status

    def _no_bucket(self):
        if self.path.startswith("/bucket/"):
            return False
        self._say(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        return True

    def _give(self, data, span):
        tag, end = _tag(data), len(data)
        if not span:
            return self._say(200, data, ETag=tag)
        start, stop = re.fullmatch(r"bytes=(\d*)-(\d*)", span).groups()
        start, stop = int(start), min(end, int(stop) + 1 if stop else end)
        if start >= end:
            return self._say(416, b"<Error><Code>InvalidRange</Code></Error>")
        where = {"Content-Range": f"bytes {start}-{stop - 1}/{end}"}
        return self._say(206, data[start:stop], ETag=tag, **where)

    def _say(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def _tag(content):
    return f'"{hashlib.md5(content).hexdigest()}"'
