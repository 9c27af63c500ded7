"""A web server on this machine that serves a folder, and fails as it is told."""

import threading
import time
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class WebServer:
    """Serves `folder`; `faults` says what the next answers for a file name do in place of that.

    A fault is a status number, "short" (the answer ends after half the bytes it promised) or "slow"
    (nothing comes for a second); each is used up by one GET.
    """

    def __init__(self, folder):
        self.faults = {}
        self.gets = Counter()
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(folder))

            def do_GET(self):
                name = self.path.lstrip("/")
                server.gets[name] += 1
                fault = server.faults[name].pop(0) if server.faults.get(name) else None
                if isinstance(fault, int):
                    self.send_error(fault)
                elif fault == "short":
                    data = (folder / name).read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                elif fault == "slow":
                    time.sleep(1)
                else:
                    super().do_GET()

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
