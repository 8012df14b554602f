"""Images by their address: which hosts are asked, and which addresses never are."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.errors import CaptionerError, ImageTooLarge
from captioner.wire import MAX_IMAGE_BYTES
from frontend.options import Options
from frontend.remote_images import ImageUrlFailed, ImageUrlRefused, RemoteImages, is_public
from tests.support.api_server import DEAD, api_server
from tests.support.served import ROOT, Served

PHOTO = (ROOT / "captioner/examples/cat.jpg").read_bytes()
HERE = "127.0.0.1"

PRIVATE = (  # noqa: SIM905
    "127.0.0.1 127.9.9.9 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 "
    "192.0.0.8 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 "
    "255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 "
    "64:ff9b::7f00:1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::8.8.8.8 2002:7f00:1:: 2002:a00:1::1 "
    "2001::1 2001:0:7f00:1:: 2001:db8::1 3fff::1 fc00::1 fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1 "
    "100::1 5f00::1 4000::1"
).split()
PUBLIC = "8.8.8.8 93.184.215.14 172.32.0.1 2606:4700::1111 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::808:808".split()  # noqa: SIM905

HERE_OTHERWISE = "127.0.0.1 2130706433 0x7f000001 0177.0.0.1 127.1 0 localhost [::1] [::ffff:7f00:1]".split()  # noqa: SIM905


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_the_internets_is_never_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_as_public_inside_an_ipv6_one(address: ipaddress.IPv4Address) -> None:
    expected = is_public(str(address))
    for prefix in ("::ffff:", "64:ff9b::"):
        assert is_public(f"{prefix}{address}") == expected
    assert not is_public(f"::{address}")


class Pictures(BaseHTTPRequestHandler):
    """A host of images, with what a host may do to a reader."""

    def __init__(self, asked: list[str], *arguments: object) -> None:
        self.asked = asked
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['Host']}{self.path}")
        status, _, rest = self.path[1:].partition("/")
        if status.startswith("3"):
            self.send_response(int(status))
            self.send_header("Location", rest)
            self.end_headers()
        elif status == "endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"\xff" * 2**16)
        elif status == "silent":
            time.sleep(3)
        else:
            self.send_response(404 if status == "missing" else 200)
            self.end_headers()
            self.wfile.write(PHOTO)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Quiet(ThreadingHTTPServer):
    """A reader that left is no news here."""

    def handle_error(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def pictures(host: str = HERE, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """A host of images: its port and what it was asked."""
    asked: list[str] = []
    server = Quiet((host, port), partial(Pictures, asked))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_address[1], asked
    server.shutdown()
    server.server_close()


class Names:
    """A resolver with one answer after the other; the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(self, host: str, _: int) -> list[str]:
        """The next answer."""
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def is_here(address: str) -> bool:
    return address == HERE


def local(*hosts: str, timeout_s: float = 10.0) -> RemoteImages:
    """Images of this machine, which a user could not allow."""
    return RemoteImages(hosts, resolve=Names([HERE]).resolve, allowed=is_here, timeout_s=timeout_s)


def fetch(images: RemoteImages, url: str) -> bytes:
    return asyncio.run(images.fetch(url))


def test_an_image_of_an_allowed_host_is_fetched_with_its_name_in_the_request() -> None:
    with pictures() as (port, asked):
        assert fetch(local(f"img.test:{port}"), f"http://IMG.test:{port}/a b.jpg?x=1&y=é#part") == PHOTO
    assert asked == [f"img.test:{port}/a%20b.jpg?x=1&y=%C3%A9"]


@pytest.mark.parametrize(
    "url",
    [
        "http://other.test/",
        "http://img.test.evil.test/",
        "http://evil.test#img.test/",
        "http://evil.test\\@img.test/",
        "http://img.test@evil.test/",
        "http://user:password@img.test/",
        "http://img.test:22/",
        "http://img.test:99999/",
        "http://img.test:x/",
        "http://",
        "http:///a.jpg",
        "http://[::1/",
        "http://.img.test/",
        "http://a..img.test/",
        "http://ⓘmg.test.evil/",
        "ftp://img.test/",
        "file:///etc/passwd",
        "//img.test/a.jpg",
    ],
)
def test_any_other_address_is_refused_before_a_name_is_looked_up(url: str) -> None:
    names = Names([HERE])
    images = RemoteImages(("img.test", "*.sub.test"), resolve=names.resolve, allowed=is_here)
    with pytest.raises(ImageUrlRefused):
        fetch(images, url)
    assert names.asked == []


def test_no_host_is_asked_unless_the_operator_named_one() -> None:
    names = Names([HERE])
    with pytest.raises(ImageUrlRefused, match="not fetched from addresses here"):
        fetch(RemoteImages((), resolve=names.resolve, allowed=is_here), "https://img.test/a.jpg")
    assert names.asked == []


@pytest.mark.parametrize(("pattern", "allowed"), [("*.example.test", True), ("example.test", False)])
def test_a_pattern_allows_the_hosts_below_a_name(pattern: str, allowed: bool) -> None:
    names = Names(["10.0.0.1"])
    with pytest.raises(ImageUrlRefused):
        fetch(RemoteImages((pattern,), resolve=names.resolve), "https://a.example.test/")
    assert names.asked == (["a.example.test"] if allowed else [])


@pytest.mark.parametrize("address", PRIVATE)
def test_an_allowed_name_of_a_private_address_is_refused(address: str) -> None:
    images = RemoteImages(("img.test",), resolve=Names(["8.8.8.8", address]).resolve)
    with pytest.raises(ImageUrlRefused, match="inside a network"):
        fetch(images, "http://img.test/")


@pytest.mark.parametrize("host", HERE_OTHERWISE)
def test_no_way_to_write_this_machines_address_reaches_it(host: str) -> None:
    with pictures() as (port, asked), pytest.raises((ImageUrlRefused, ImageUrlFailed)):
        fetch(RemoteImages(("*",)), f"http://{host}:{port}/a.jpg")
    assert asked == []


def test_a_name_is_resolved_once_and_the_address_that_was_checked_is_asked() -> None:
    names = Names([HERE], ["127.0.0.2"])
    with pictures() as (port, asked), pictures("127.0.0.2", port=port) as (_, inside):
        images = RemoteImages((f"img.test:{port}",), resolve=names.resolve, allowed=is_here)
        assert fetch(images, f"http://img.test:{port}/a.jpg") == PHOTO
        assert len(names.asked) == len(asked) == 1
        with pytest.raises(ImageUrlRefused):  # now the name means the second address
            fetch(images, f"http://img.test:{port}/a.jpg")
    assert inside == []


def test_a_redirect_is_followed_to_allowed_hosts_only() -> None:
    with pictures() as (port, asked):
        images = local(f"img.test:{port}", f"also.test:{port}")
        assert fetch(images, f"http://img.test:{port}/302/http://also.test:{port}/a.jpg") == PHOTO
        assert fetch(images, f"http://img.test:{port}/308//b.jpg") == PHOTO
        assert asked[-1] == f"img.test:{port}/b.jpg"
        for elsewhere in (f"http://evil.test:{port}/", f"http://127.0.0.1:{port}/", "file:///etc/passwd", "http://[/"):
            asked.clear()
            with pytest.raises(ImageUrlRefused):
                fetch(images, f"http://img.test:{port}/302/{elsewhere}")
            assert len(asked) == 1


def test_a_redirect_to_a_private_address_is_refused() -> None:
    names = Names([HERE], ["192.168.0.1"])
    with pictures() as (port, _):
        images = RemoteImages(("*",), resolve=names.resolve, allowed=is_here)
        with pytest.raises(ImageUrlRefused, match="inside a network"):
            fetch(images, f"http://img.test:{port}/302/http://other.test:{port}/a.jpg")


def test_redirects_in_a_circle_end() -> None:
    with pictures() as (port, asked):
        circle = f"http://img.test:{port}/302/" * 9
        with pytest.raises(ImageUrlFailed, match="more than 3 times"):
            fetch(local(f"img.test:{port}"), circle)
        assert len(asked) == 4


def test_an_image_without_end_is_refused_at_the_limit() -> None:
    with pictures() as (port, _), pytest.raises(ImageTooLarge, match=f"larger than {MAX_IMAGE_BYTES >> 20} MiB"):
        fetch(local("*"), f"http://img.test:{port}/endless")


def test_a_host_that_says_nothing_is_given_up_in_time() -> None:
    began = time.monotonic()
    with pictures() as (port, _), pytest.raises(ImageUrlFailed, match=r"not here after 0\.3 s"):
        fetch(local("*", timeout_s=0.3), f"http://img.test:{port}/silent")
    assert time.monotonic() - began < 3


def test_a_host_that_has_no_image_or_does_not_answer_is_said() -> None:
    with pictures() as (port, _), pytest.raises(ImageUrlFailed, match="answered 404"):
        fetch(local("*"), f"http://img.test:{port}/missing")
    with pytest.raises(ImageUrlFailed, match="could not be fetched"):
        fetch(local("*"), "http://img.test:9/")
    with pytest.raises(ImageUrlFailed, match="has no address"):
        fetch(RemoteImages(("*",), resolve=Names([]).resolve), "http://img.test/")


def test_https_proves_the_name_although_the_address_is_pinned(tmp_path: Path) -> None:
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key "
        "-out certificate -subj /CN=img.test -addext subjectAltName=DNS:img.test"
    )
    subprocess.run(make, shell=True, cwd=tmp_path, check=True, capture_output=True)
    host = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    host.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    reader = ssl.create_default_context(cafile=str(tmp_path / "certificate"))
    with pictures(tls=host) as (port, _):
        images = RemoteImages(("*",), resolve=Names([HERE]).resolve, allowed=is_here, tls=reader)
        assert fetch(images, f"https://img.test:{port}/a.jpg") == PHOTO
        with pytest.raises(ImageUrlFailed, match="could not be fetched"):
            fetch(images, f"https://other.test:{port}/a.jpg")
        with pytest.raises(ImageUrlFailed, match="could not be fetched"):
            fetch(local("*"), f"https://img.test:{port}/a.jpg")


@settings(deadline=None)
@given(st.text(max_size=30), st.sampled_from(["http://", "https://", "http://img.test", "http://img.test/", ""]))
def test_any_text_is_an_address_or_refused(text: str, start: str) -> None:
    images = RemoteImages(("img.test", "*.test"), resolve=Names(["10.0.0.1"]).resolve)
    with pytest.raises(CaptionerError):
        fetch(images, start + text)


@pytest.mark.triton
def test_both_doors_caption_an_image_by_its_address(served: Served) -> None:
    with pictures() as (port, _):
        images = local(f"img.test:{port}")
        address = f"http://img.test:{port}/a.jpg"
        content = [{"type": "image_url", "image_url": {"url": address}}]
        with api_server(served.grpc, images=images) as url:
            plain = httpx.post(f"{url}/v1/captions", json={"image": address}).json()["caption"]
            body = {"model": "captioner", "messages": [{"role": "user", "content": content}]}
            chat = httpx.post(f"{url}/v1/chat/completions", json=body).json()
            file = httpx.post(f"{url}/v1/captions", files={"image": PHOTO}).json()["caption"]
    assert plain == chat["choices"][0]["message"]["content"] == file


def test_the_operators_hosts_are_the_only_ones_the_api_asks() -> None:
    with api_server(DEAD, Options(image_hosts=("localhost", "img.test"))) as url:
        for address in ("http://other.test/", "http://localhost/", "http://localhost:9/"):
            answer = httpx.post(f"{url}/v1/captions", json={"image": address})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "IMAGE_URL_REFUSED"
