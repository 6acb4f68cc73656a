"""A server of its own, for script mode and custom commands."""
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Sluice-Refused", "busy")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/ok":
            return self.answer(500 if os.path.exists("ill") else 200, "well")
        if self.path == "/exit":
            print("server exits", flush=True)
            os._exit(9)
        if self.path == "/hang":
            time.sleep(1000)
        self.answer(200, {"path": self.path, "argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, {"path": self.path, "body": body.decode(), "headers": dict(self.headers)})

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    print("server starts")
    if "fail" in sys.argv:
        sys.exit(4)
    if "never" in sys.argv:
        time.sleep(1000)
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
