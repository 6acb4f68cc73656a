"""The scoring worker: imports an entry script, calls init() once and run() per request.

The gate starts it as `python3 -c BOOT SLOTS WATCH SCRIPT ARGUMENT...` with this text
on file descriptor 4, the guard pipe on 3 and one stream socket per slot from 5 on.
A slot's socket carries one request at a time: the gate writes a frame, the thread
that owns the slot calls run() and writes a frame back. Frames are fixed binary
headers (below; frame.go has the other side) and bytes; there is no locking, since a
slot belongs to one thread here and to one request there.

Standard library only, Python 3.6 and newer.
"""
import io
import json
import os
import struct
import sys
import time
from _thread import _local

GUARD, FIRST_SLOT = 3, 5

# Request: bytes after this header, of which headers, length of the whole body or -1,
# flags, length of the request id. Then id, headers ("name\0value\0"...), body or its
# first piece. Without LAST, pieces follow: PIECE header and bytes.
REQUEST = struct.Struct("<IIqHHI")
PIECE = struct.Struct("<II")
LAST, QUERY, ABORT = 1, 2, 4

# Response: length of the payload, nanoseconds in run(), length of the headers, kind,
# HTTP status. Then headers, payload.
RESPONSE = struct.Struct("<QQIHH")
OK, SCRIPT_ERROR, RAW, BAD_INPUT, READY, INIT_FAILED = range(6)
WANTS_HEADERS = 1  # READY's status field

LINE_LIMIT = 16384  # characters of one log line; longer ones are cut into several
TREE_LIMIT = 200  # lines of the model directory's listing after a failed init()


class _State(_local):
    """What a thread works on: the request id that tags its output, unfinished lines."""

    id = "-"
    out = ""
    err = ""


STATE = _State()


def _emit(line):
    try:
        data = ("[%s] %s\n" % (STATE.id, line)).encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(2, data):]
    except OSError:
        pass  # nobody reads the log: a print() must not fail a request for that


class _Lines(io.TextIOBase):
    """A text stream that writes whole lines, each tagged with the thread's request id."""

    encoding, errors, newlines, mode = "utf-8", "backslashreplace", None, "w"

    def __init__(self, name, raw):
        self.name = "<std%s>" % name
        self._key = name
        self._raw = raw

    @property
    def buffer(self):
        return self._raw.buffer  # bytes written there pass untagged

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not %s" % type(text).__name__)
        pending = getattr(STATE, self._key) + text
        if "\n" in pending:
            lines = pending.split("\n")
            pending = lines.pop()
            for line in lines:
                self._cut(line)
        while len(pending) > LINE_LIMIT:
            _emit(pending[:LINE_LIMIT])
            pending = pending[LINE_LIMIT:]
        setattr(STATE, self._key, pending)
        return len(text)

    def _cut(self, line):
        _emit(line[:LINE_LIMIT])
        while len(line) > LINE_LIMIT:
            line = line[LINE_LIMIT:]
            _emit(line[:LINE_LIMIT])

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        pass  # lines leave as they end, the rest with the request

    def fileno(self):
        return self._raw.fileno()

    def isatty(self):
        return False

    def writable(self):
        return True

    def reconfigure(self, **_):
        pass

    def close(self):
        pass


def _finish_lines():
    """Ends unfinished lines, so that none is continued under another request's id."""
    if STATE.out:
        _emit(STATE.out)
        STATE.out = ""
    if STATE.err:
        _emit(STATE.err)
        STATE.err = ""


def _explain(exc):
    """Writes the traceback, without the worker's own frames, to the log; returns it."""
    try:
        import traceback

        tb = exc.__traceback__
        own = _explain.__code__.co_filename
        while tb is not None and tb.tb_frame.f_code.co_filename.startswith((own, "<frozen importlib")):
            tb = tb.tb_next
        text = "".join(traceback.format_exception(type(exc), exc, tb))
    except BaseException:  # out of memory, or a broken __str__
        text = "%s (its traceback could not be formatted)\n" % type(exc).__name__
    _finish_lines()
    for line in text.rstrip("\n").split("\n"):
        _emit(line)
    return text


def _plain(value):
    """What json cannot write itself: numpy's scalars and arrays, and their like."""
    convert = getattr(value, "tolist", None)
    if convert is None:
        raise TypeError("an object of type %s is not JSON serializable" % type(value).__name__)
    return convert()


ENCODE = json.JSONEncoder(default=_plain).encode
CLOCK = getattr(time, "perf_counter_ns", None) or (lambda: int(time.perf_counter() * 1e9))  # 3.6 has no _ns
PLAIN = frozenset((dict, list, tuple, str, int, float, bool))


class _BadInput(Exception):
    pass


def _dump(value):
    try:
        return ENCODE(value).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise TypeError("run() returned what JSON cannot hold: %s" % exc) from None


def _answer(result):
    """run()'s result as (kind, status, headers, payload)."""
    if type(result) in PLAIN:
        return OK, 200, b"", _dump(result)
    if result is None:
        return OK, 200, b"", b"{}"
    # A Flask, Werkzeug or Azure ML response, known by its shape: flask is not ours to import.
    if hasattr(result, "get_data") and hasattr(result, "status_code") and hasattr(result, "headers"):
        head = []
        for name, value in result.headers.items():
            head.append("%s\0%s\0" % (name, value))
        return RAW, int(result.status_code), "".join(head).encode("latin-1", "replace"), result.get_data()
    return OK, 200, b"", _dump(result)


def _query(text):
    """A query string as the JSON text run() gets for a GET: values that are JSON count
    as JSON, a repeated name as a list."""
    from urllib.parse import parse_qsl

    found = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        try:
            value = json.loads(value)
        except ValueError:
            pass
        found.setdefault(name, []).append(value)
    return json.dumps({k: v[0] if len(v) == 1 else v for k, v in found.items()})


def _write(fd, parts):
    if len(parts[0]) + len(parts[1]) + len(parts[2]) <= 65536:
        data = memoryview(b"".join(parts))
        while data:
            data = data[os.write(fd, data):]
        return
    parts = [memoryview(p) for p in parts if p]
    while parts:
        done = os.writev(fd, parts)
        while parts and done >= len(parts[0]):
            done -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][done:]


class _Closed(Exception):
    """The gate closed the slot's socket."""


class _Rest:
    """Reads what follows a first piece: what had arrived with it, then the socket."""

    def __init__(self, fd, arrived):
        self.fd, self.arrived = fd, arrived

    def into(self, view):
        if self.arrived:
            n = min(len(self.arrived), len(view))
            view[:n] = self.arrived[:n]
            self.arrived = self.arrived[n:]
            view = view[n:]
        while view:
            n = os.readv(self.fd, [view])
            if n == 0:
                raise _Closed
            view = view[n:]

    def body(self, first, total):
        """The whole body, or None if the gate gave it up."""
        at = len(first)
        data = bytearray(first) if total < 0 else bytearray(total)
        if total >= 0:
            data[:at] = first
        head = bytearray(PIECE.size)
        while True:
            self.into(memoryview(head))
            n, flags = PIECE.unpack(head)
            if flags & ABORT:
                return None
            if total < 0:
                data.extend(bytes(n))
            view = memoryview(data)
            self.into(view[at:at + n])
            view.release()
            at += n
            if flags & LAST:
                return data


def _serve(fd, call, wants_headers):
    """Answers the requests of one slot until the gate closes its socket."""
    buf = bytearray(65536)
    bufs, view, head = [buf], memoryview(buf), REQUEST.size
    readv, unpack, pack, clock, state = os.readv, REQUEST.unpack_from, RESPONSE.pack, CLOCK, STATE
    while True:
        got = readv(fd, bufs)
        while got < head:
            n = got and readv(fd, [view[got:]])
            if n == 0:
                return
            got += n
        size, header_len, total, flags, id_len, _ = unpack(buf)
        end = head + size
        src = view
        if end > len(buf):
            src = memoryview(bytearray(end))
            src[:got] = view[:got]
        while got < end:
            n = readv(fd, [src[got:]])
            if n == 0:
                return
            got += n
        at = head + id_len
        state.id = str(src[head:at], "latin-1")
        headers = None
        if header_len:
            parts = iter(str(src[at:at + header_len], "latin-1").split("\0"))
            headers = dict(zip(parts, parts))
            at += header_len
        body = src[at:end]
        start = spent = 0
        try:
            if not flags & LAST:
                body = _Rest(fd, bytes(src[end:got])).body(bytes(body), total)
                if body is None:
                    continue
            try:
                data = str(body, "utf-8")
            except UnicodeDecodeError:
                data = bytes(body)
            body = None
            if flags & QUERY:
                data = _query(data)
            start = clock()
            if wants_headers:
                result = call(data, {} if headers is None else headers)
            else:
                result = call(data)
            spent = clock() - start
            kind, status, head_out, payload = _answer(result)
        except _Closed:
            return
        except _BadInput as exc:
            kind, status, head_out, payload = BAD_INPUT, 400, b"", str(exc).encode("utf-8", "replace")
        except BaseException as exc:  # a SystemExit in run() fails the request, not the worker
            spent = spent or (start and clock() - start)
            _explain(exc)
            kind, status, head_out, payload = SCRIPT_ERROR, 500, b"", b""
        if state.out or state.err:
            _finish_lines()
        state.id = "-"
        data = result = None  # a big request must not stay in memory until the next one
        try:
            if not head_out and len(payload) < 65536:
                out = pack(len(payload), spent, 0, kind, status) + payload
                n = os.write(fd, out)
                if n < len(out):
                    _write(fd, (out[n:], b"", b""))
            else:
                _write(fd, (pack(len(payload), spent, len(head_out), kind, status), head_out, payload))
        except OSError:
            return  # the gate is gone or gave this worker up
        payload = out = None


def _parameters(run):
    """run()'s parameters: (name, has a default, "positional" | "keyword" | "many")."""
    code = getattr(run, "__code__", None)
    if code is not None and not hasattr(run, "__wrapped__") and not hasattr(run, "__self__"):
        # The usual case without the inspect module and its memory.
        if code.co_flags & 0x80:
            raise TypeError("run() must be a plain function, not a coroutine (async def)")
        count = code.co_argcount
        names = code.co_varnames[:count + code.co_kwonlyargcount]
        optional = set(names[count - len(run.__defaults__ or ()):count])
        optional.update(run.__kwdefaults__ or ())
        found = [(n, n in optional, "positional" if i < count else "keyword") for i, n in enumerate(names)]
        if code.co_flags & 0x0C:  # *args, **kwargs
            found.append(("*", True, "many"))
        return found
    import inspect

    if inspect.iscoroutinefunction(run):
        raise TypeError("run() must be a plain function, not a coroutine (async def)")
    kinds = {inspect.Parameter.VAR_POSITIONAL: "many", inspect.Parameter.VAR_KEYWORD: "many", inspect.Parameter.KEYWORD_ONLY: "keyword"}
    return [(p.name, p.default is not p.empty, kinds.get(p.kind, "positional")) for p in inspect.signature(run).parameters.values()]


def _caller(run):
    """run() as call(data) or call(data, headers), and whether it wants the headers."""
    parameters = _parameters(run)
    wants = any(name == "request_headers" for name, _, _ in parameters)
    inputs = [p for p in parameters if p[0] != "request_headers"]
    if not inputs:
        raise TypeError("run() needs to accept an argument for the input data")

    for name in ("azureml.contrib.services.aml_request", "azureml_inference_server_http.api.aml_request"):
        if getattr(sys.modules.get(name), "_rawHttpRequested", False):
            raise TypeError("run() is decorated with @rawhttp, which is not supported: "
                            "take the data (and request_headers) instead, or bring a server of your own with `command:`")

    schema = sys.modules.get("inference_schema.schema_util")
    if schema is not None and schema.is_schema_decorated(run):
        def decorated(data, headers=None):
            try:
                fields = json.loads(data)
            except ValueError as exc:
                raise _BadInput("the body is not JSON: %s" % exc)
            if not isinstance(fields, dict):
                raise _BadInput("the body must be a JSON object with run()'s parameters")
            missing = [n for n, optional, kind in inputs if not optional and kind != "many" and n not in fields]
            if missing:
                raise _BadInput("missing parameters: %s" % ", ".join(missing))
            given = {n: fields[n] for n, _, kind in inputs if kind != "many" and n in fields}
            if wants:
                given["request_headers"] = headers
            return run(**given)

        return decorated, wants

    name, _, kind = inputs[0]
    if kind == "keyword" or parameters[0][0] == "request_headers":
        if wants:
            return lambda data, headers: run(**{name: data, "request_headers": headers}), True
        return lambda data: run(**{name: data}), False
    if wants:
        return lambda data, headers: run(data, request_headers=headers), True
    return run, False


def _load(script):
    """Imports the entry script under its own name, so that pickles find its classes."""
    import importlib.util

    name = os.path.splitext(os.path.basename(script))[0]
    taken = set(sys.builtin_module_names) | set(getattr(sys, "stdlib_module_names", ())) | set(sys.modules)
    if not name.isidentifier() or name in taken:
        name = "entry_module"
    loader = importlib.util.spec_from_file_location(name, script)
    if loader is None:
        raise ImportError("the entry script %s is not a Python file" % script)
    module = importlib.util.module_from_spec(loader)
    sys.modules[name] = module
    loader.loader.exec_module(module)
    for needed in ("init", "run"):
        if not callable(getattr(module, needed, None)):
            raise AttributeError("the entry script %s has no function %s()" % (script, needed))
    return module


def _list_models():
    root = os.environ.get("AZUREML_MODEL_DIR")
    if not root or not os.path.isdir(root):
        return
    _emit("contents of AZUREML_MODEL_DIR=%s:" % root)
    left = TREE_LIMIT
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if left == 0:
                _emit("  ... (first %d files shown)" % TREE_LIMIT)
                return
            left -= 1
            _emit("  " + os.path.relpath(os.path.join(folder, name), root))


def _watch():
    """Ends the worker and its children when the gate is gone. Where the kernel does
    that (Linux, see proc_linux.go) this thread is not started."""
    try:
        while os.read(GUARD, 1):
            pass
    except OSError:
        pass
    try:
        os.killpg(os.getpgrp(), 9)
    finally:
        os._exit(1)


def _report_up(kind, status, payload):
    try:
        _write(FIRST_SLOT, (RESPONSE.pack(len(payload), 0, 0, kind, status), b"", payload))
    except OSError:
        pass


def main():
    slots, watch, script = int(sys.argv[1]), sys.argv[2] == "1", sys.argv[3]
    sys.argv[:3] = []
    if watch:
        import _thread

        _thread.start_new_thread(_watch, ())
    for fd in range(FIRST_SLOT, FIRST_SLOT + slots):
        os.set_inheritable(fd, False)
    try:
        import faulthandler
        import signal

        faulthandler.enable()
        # The gate asks for the threads' stacks before it kills a worker that timed out.
        faulthandler.register(signal.SIGUSR2, all_threads=True)
    except (ImportError, AttributeError, OSError, ValueError):
        pass
    sys.stdout, sys.stderr = _Lines("out", sys.stdout), _Lines("err", sys.stderr)

    root = os.environ.get("AML_APP_ROOT") or os.getcwd()
    source = os.environ.get("AZUREML_SOURCE_DIRECTORY")
    front = [os.path.dirname(script)] + ([os.path.join(root, source)] if source else []) + [root]
    sys.path[:] = [p for i, p in enumerate(front) if p not in front[:i]] + [p for p in sys.path if p and p not in front]

    STATE.id = "init"
    try:
        module = _load(script)
        call, wants_headers = _caller(module.run)
        module.init()
    except BaseException as exc:
        text = _explain(exc)
        _list_models()
        _report_up(INIT_FAILED, 0, text[-60000:].encode("utf-8", "replace"))
        sys.stdout.flush()
        os._exit(3)
    _finish_lines()
    STATE.id = "-"

    import gc

    gc.collect()
    if hasattr(gc, "freeze"):
        gc.freeze()  # the model is here to stay: collections need not walk it
    _report_up(READY, WANTS_HEADERS if wants_headers else 0, b"")
    if slots > 1:
        import threading

        for fd in range(FIRST_SLOT + 1, FIRST_SLOT + slots):
            threading.Thread(target=_serve, args=(fd, call, wants_headers), name="slot-%d" % (fd - FIRST_SLOT)).start()
    _serve(FIRST_SLOT, call, wants_headers)


main()
