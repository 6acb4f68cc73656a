"""What the tests ask of a scoring script; the request says which."""
import json
import os
import subprocess
import sys
import threading
import time

STARTED = []


def init():
    print("init prints")
    STARTED.append(os.getpid())
    gate = os.environ.get("TEST_INIT_WAITS_FOR")
    while gate and not os.path.exists(gate):
        time.sleep(0.005)


class Array:
    def tolist(self):
        return [1, 2.5]


class Response:
    """As Flask's, in shape."""

    def __init__(self, body, status, headers):
        self.body, self.status_code, self.headers = body, status, headers

    def get_data(self):
        return self.body


def wait_for(path):
    with open(path + ".in", "a"):
        pass
    while not os.path.exists(path):
        time.sleep(0.002)


def run(data, request_headers):
    if isinstance(data, bytes):
        return {"bytes": list(data)}
    try:
        ask = json.loads(data)
    except ValueError:
        return {"text": data}
    if not isinstance(ask, dict) or "do" not in ask:
        return {"echo": ask}
    do = ask["do"]
    if do == "context":
        return {"argv": sys.argv, "cwd": os.getcwd(), "env": {k: v for k, v in os.environ.items() if "ML_" in k or k.startswith("SLUICE_RUNNER")},
                "main": threading.current_thread() is threading.main_thread(), "module": __name__, "pid": os.getpid(),
                "inits": STARTED, "path": sys.path[:3]}
    if do == "headers":
        return request_headers
    if do == "return":
        return {"str": 'a "text"', "none": None, "array": Array(), "nested": {"a": Array()}, "nan": float("nan"), "unicode": "é"}[ask["what"]]
    if do == "raise":
        raise ValueError("bad\nthing " + ask.get("text", ""))
    if do == "exit":
        sys.exit(5)
    if do == "die":
        os._exit(7)
    if do == "set":
        return {1, 2}
    if do == "wait":
        wait_for(ask["path"])
        return "waited"
    if do == "hang":
        with open(ask["path"], "a"):
            pass
        time.sleep(1000)
    if do == "print":
        print("to stdout", ask["n"])
        print("to", "stderr", ask["n"], file=sys.stderr)
        sys.stdout.write("unfinished")
        return "printed"
    if do == "print much":
        print("x" * 40000 + "end")
        t = threading.Thread(target=lambda: print("from a thread"))
        t.start()
        t.join()
        os.write(1, b"from below\n")
        return "printed"
    if do == "big":
        return "x" * (ask["n"] - 2)
    if do == "respond":
        return Response(ask["body"].encode(), ask["status"], ask["headers"])
    if do == "children":
        forked = os.fork()
        if forked == 0:
            time.sleep(1000)
        return [os.getpid(), forked, subprocess.Popen(["sleep", "1000"]).pid]
    raise KeyError(do)
