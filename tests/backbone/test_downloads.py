"""Downloads from servers that do everything wrong: one error, in time, and nothing kept that is no weights file."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import paddle
import pytest
from places import HELPERS
from toy import TinyNet

from paddlelite_callbacks.backbone.weights import DownloadError, fetch, is_url, local_weights
from paddlelite_callbacks.utils.file_kind import mistaken_kind

HTML = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "w.pdparams"
    paddle.save(TinyNet().state_dict(), str(file))
    return file.read_bytes()


@pytest.fixture(scope="module")
def server(weights):
    """``/good`` sends the file; every other path is another way to fail."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            getattr(self, "do_" + self.path.strip("/").partition(".")[0])()

        def _head(self, length=None, status=200):
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()

        def do_good(self):
            self._head(len(weights))
            self.wfile.write(weights)

        def do_login(self):
            self._head(len(HTML))
            self.wfile.write(HTML)

        def do_none(self):
            self._head(0, status=404)

        def do_empty(self):
            self._head(0)

        def do_zeros(self):
            self._head(4096)
            self.wfile.write(bytes(4096))

        def do_json(self):
            self._head()
            self.wfile.write(b'{"error": "not found"}')

        def do_short(self):
            self._head(len(weights))
            self.wfile.write(weights[: len(weights) // 2])

        def do_cut(self):
            """Breaks off without having said how long it is."""
            self._head()
            self.wfile.write(weights[: len(weights) // 2])

        def do_length(self):
            self._head("many")
            self.wfile.write(weights)

        def do_strange(self):
            self.wfile.write(b"220 this is no HTTP\r\n\r\n")

        def do_chunks(self):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"fff\r\nhalf of a chunk")

        def do_silent(self):
            self.connection.shutdown(socket.SHUT_RDWR)

        def do_slow(self):
            self._head(len(weights))
            self._drip(weights)

        def do_head(self):
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
            self._drip(b"a" * 10_000)

        def _drip(self, data):
            for byte in data:
                try:
                    self.wfile.write(bytes([byte]))
                except OSError:
                    return
                time.sleep(0.1)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_whole_file_arrives(server, weights, tmp_path):
    target = tmp_path / "cache" / "w.pdparams"
    assert fetch(f"{server}/good", target) == target
    assert target.read_bytes() == weights
    assert [path.name for path in target.parent.iterdir()] == ["w.pdparams"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none", "HTTP Error 404"),
        ("login", "what came is an HTML page, not the file behind the link"),
        ("empty", "what came is empty"),
        ("zeros", "only zeros"),
        ("json", "not a file of paddle.save"),
        ("short", "broke off after [0-9]+ of [0-9]+ bytes"),
        ("cut", "what came cannot be read: it is truncated"),
        ("length", "ValueError"),
        ("strange", "BadStatusLine"),
        ("chunks", "IncompleteRead"),
        ("silent", "closed connection without response|reset"),
    ],
)
def test_every_failure_is_one_error_and_nothing_is_kept(path, said, server, tmp_path):
    with pytest.raises(DownloadError, match=rf"could not be downloaded from {server}/{path}.*({said}).*pass its path"):
        fetch(f"{server}/{path}", tmp_path / "w.pdparams")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["slow", "head"])
def test_a_server_that_drips_is_left_at_the_deadline(path, server, tmp_path):
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="was not finished after 1 s"):
        fetch(f"{server}/{path}", tmp_path / "w.pdparams", seconds=1)
    assert time.monotonic() - begin < 10  # the whole answer takes minutes
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/w", "http:///w", "http://127.0.0.1:port/w", "http://a b/w", "https://127.0.0.1:9/w"]
)
def test_what_is_no_server_is_the_same_error(url, tmp_path):
    with pytest.raises(DownloadError, match="could not be downloaded from"):
        fetch(url, tmp_path / "w.pdparams")


def test_a_server_without_tls_is_the_same_error(server, tmp_path):
    with pytest.raises(DownloadError, match=r"SSL|TLS"):
        fetch(server.replace("http:", "https:") + "/good", tmp_path / "w.pdparams")


def test_a_login_page_that_was_kept_before_is_fetched_again(server, weights, tmp_path):
    target = tmp_path / "w.pdparams"
    for junk in (HTML, b"", weights[:100]):
        target.write_bytes(junk)
        assert fetch(f"{server}/good", target).read_bytes() == weights
    target.write_bytes(HTML)
    with pytest.raises(DownloadError):
        fetch(f"{server}/none", target)


def test_addresses_in_capitals_are_addresses(server, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert is_url("HTTP://example.org/w.pdparams")
    assert local_weights(server.replace("http", "HTTP") + "/good.pdparams").read_bytes() == weights


READ_ONLY = """
import sys, pathlib
from paddlelite_callbacks.backbone.weights import local_weights
try:
    local_weights(sys.argv[1])
except PermissionError as error:
    sys.stdout.write(f"told: {error}")
"""


def _may_mount() -> bool:
    command = ["unshare", "--map-root-user", "--mount", "true"]
    return shutil.which("unshare") is not None and not subprocess.run(command, check=False, stderr=-3).returncode


@pytest.mark.skipif(not _may_mount(), reason="no name spaces for users here")
def test_a_home_that_cannot_be_written_to_is_no_fault_of_the_server(server, tmp_path):
    mount = 'mount -t tmpfs -o ro tmpfs "$1" && exec "$2" -W ignore -c "$3" "$4"'
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    environment = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
    done = subprocess.run(
        [*alone, str(tmp_path), sys.executable, READ_ONLY, f"{server}/good"],
        capture_output=True, text=True, env={**environment, "HOME": str(tmp_path)}, cwd=HELPERS,
    )  # fmt: skip
    assert done.stdout.startswith(f"told: The weights of {server}/good cannot be kept in {tmp_path}/"), done.stderr
    assert "Set XDG_CACHE_HOME" in done.stdout


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n", "pointer of Git LFS.*git lfs pull"),
        (b"/annex/objects/MD5-s1--aa\n", "pointer of git-annex"),
        (b"\n  <HTML>", "an HTML page"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x1f\x8b\x08", "gzip"),
        (bytes(257) + b"ustar", "tar archive"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (b"", "empty"),
        ("größe".encode() * 300, "a text that begins 'größe"),
        (b"not found\n", "a text that begins 'not found"),
    ],
)
def test_first_bytes_tell_what_a_file_is(content, what, tmp_path):
    (tmp_path / "f").write_bytes(content)
    assert re.match(f".*{what}", mistaken_kind(tmp_path / "f"))


@pytest.mark.parametrize("content", [b"\x80\x04\x95", b"\x08\x08\x12\x07pytorch", b"\x0a\xb3\x36", b'{"base_code": 1}'])
def test_first_bytes_of_model_files_are_not_mistaken(content, tmp_path):
    (tmp_path / "f").write_bytes(content)
    assert mistaken_kind(tmp_path / "f") is None
