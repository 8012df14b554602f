"""Images by URL: which hosts are contacted, and which IP addresses never are."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner.client.image_fetcher import ImageUrlFailed, ImageUrlRefused, is_public
from captioner.errors import CaptionerError, ImageTooLarge
from captioner.wire import MAX_IMAGE_BYTES
from frontend.options import Options
from frontend.remote_images import RemoteImages
from tests.support.api_server import DEAD, api_server
from tests.support.image_host import IMAGE, LOCAL, image_host
from tests.support.served import Served

TLS = ssl.create_default_context()  # shared, because loading the certificates takes 20 ms

PRIVATE = (  # noqa: SIM905
    "127.0.0.1 127.9.9.9 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254 100.64.0.1 "
    "192.0.0.8 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 "
    "255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 "
    "64:ff9b::7f00:1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::8.8.8.8 2002:7f00:1:: 2002:a00:1::1 "
    "2001::1 2001:0:7f00:1:: 2001:db8::1 3fff::1 fc00::1 fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1 "
    "100::1 5f00::1 4000::1"
).split()
PUBLIC = "8.8.8.8 93.184.215.14 172.32.0.1 2606:4700::1111 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::808:808".split()  # noqa: SIM905

LOCAL_SPELLINGS = "127.0.0.1 2130706433 0x7f000001 0177.0.0.1 127.1 0 localhost [::1] [::ffff:7f00:1]".split()  # noqa: SIM905


@pytest.mark.parametrize("address", PRIVATE)
def test_a_special_purpose_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_internet_address_is_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_embedded_in_an_ipv6_address_is_checked_as_itself(address: ipaddress.IPv4Address) -> None:
    expected = is_public(str(address))
    for prefix in ("::ffff:", "64:ff9b::"):
        assert is_public(f"{prefix}{address}") == expected
    assert not is_public(f"::{address}")


class Names:
    """A resolver that returns one answer after the other, and then the last one again."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(self, host: str, _: int) -> list[str]:
        """Return the next answer."""
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def is_local(address: str) -> bool:
    return address == LOCAL


def local(*hosts: str, timeout_s: float = 10.0) -> RemoteImages:
    """Fetch from this machine, which no option allows."""
    return RemoteImages(hosts, resolve=Names([LOCAL]).resolve, allowed=is_local, timeout_s=timeout_s, tls=TLS)


def fetch(images: RemoteImages, url: str) -> bytes:
    return asyncio.run(images.fetch(url))


def test_an_image_of_an_allowed_host_is_fetched_with_the_host_name_in_the_request() -> None:
    with image_host() as (port, asked):
        assert fetch(local(f"img.test:{port}"), f"http://IMG.test:{port}/a b.jpg?x=1&y=é#part") == IMAGE
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
def test_any_other_url_is_rejected_before_a_dns_lookup(url: str) -> None:
    names = Names([LOCAL])
    images = RemoteImages(("img.test", "*.sub.test"), resolve=names.resolve, allowed=is_local, tls=TLS)
    with pytest.raises(ImageUrlRefused):
        fetch(images, url)
    assert names.asked == []


def test_without_allowed_hosts_no_host_is_contacted() -> None:
    names = Names([LOCAL])
    with pytest.raises(ImageUrlRefused, match="image URLs are not allowed"):
        fetch(RemoteImages((), resolve=names.resolve, allowed=is_local, tls=TLS), "https://img.test/a.jpg")
    assert names.asked == []


@pytest.mark.parametrize(("pattern", "allowed"), [("*.example.test", True), ("example.test", False)])
def test_a_pattern_allows_subdomains(pattern: str, allowed: bool) -> None:
    names = Names(["10.0.0.1"])
    with pytest.raises(ImageUrlRefused):
        fetch(RemoteImages((pattern,), resolve=names.resolve, tls=TLS), "https://a.example.test/")
    assert names.asked == (["a.example.test"] if allowed else [])


@pytest.mark.parametrize("address", PRIVATE)
def test_an_allowed_host_with_a_private_address_is_rejected(address: str) -> None:
    images = RemoteImages(("img.test",), resolve=Names(["8.8.8.8", address]).resolve, tls=TLS)
    with pytest.raises(ImageUrlRefused, match="private address"):
        fetch(images, "http://img.test/")


@pytest.mark.parametrize("host", LOCAL_SPELLINGS)
def test_no_spelling_of_a_loopback_address_reaches_this_machine(host: str) -> None:
    with image_host() as (port, asked), pytest.raises((ImageUrlRefused, ImageUrlFailed)):
        fetch(RemoteImages(("*",), tls=TLS), f"http://{host}:{port}/a.jpg")
    assert asked == []


def test_dns_rebinding_does_not_change_the_checked_address() -> None:
    names = Names([LOCAL], ["127.0.0.2"])
    with image_host() as (port, asked), image_host("127.0.0.2", port=port) as (_, inside):
        images = RemoteImages((f"img.test:{port}",), resolve=names.resolve, allowed=is_local, tls=TLS)
        assert fetch(images, f"http://img.test:{port}/a.jpg") == IMAGE
        assert len(names.asked) == len(asked) == 1
        with pytest.raises(ImageUrlRefused):  # the second lookup returns the second address
            fetch(images, f"http://img.test:{port}/a.jpg")
    assert inside == []


def test_redirects_are_followed_only_to_allowed_hosts() -> None:
    with image_host() as (port, asked):
        images = local(f"img.test:{port}", f"also.test:{port}")
        assert fetch(images, f"http://img.test:{port}/302/http://also.test:{port}/a.jpg") == IMAGE
        assert fetch(images, f"http://img.test:{port}/308//b.jpg") == IMAGE
        assert asked[-1] == f"img.test:{port}/b.jpg"
        for elsewhere in (f"http://evil.test:{port}/", f"http://127.0.0.1:{port}/", "file:///etc/passwd", "http://[/"):
            asked.clear()
            with pytest.raises(ImageUrlRefused):
                fetch(images, f"http://img.test:{port}/302/{elsewhere}")
            assert len(asked) == 1


def test_a_redirect_to_a_private_address_is_rejected() -> None:
    names = Names([LOCAL], ["192.168.0.1"])
    with image_host() as (port, _):
        images = RemoteImages(("*",), resolve=names.resolve, allowed=is_local, tls=TLS)
        with pytest.raises(ImageUrlRefused, match="private address"):
            fetch(images, f"http://img.test:{port}/302/http://other.test:{port}/a.jpg")


def test_a_redirect_loop_ends_after_three_redirects() -> None:
    with image_host() as (port, asked):
        circle = f"http://img.test:{port}/302/" * 9
        with pytest.raises(ImageUrlFailed, match="more than 3 times"):
            fetch(local(f"img.test:{port}"), circle)
        assert len(asked) == 4


def test_an_endless_response_is_rejected_at_the_size_limit() -> None:
    with image_host() as (port, _), pytest.raises(ImageTooLarge, match=f"larger than {MAX_IMAGE_BYTES >> 20} MiB"):
        fetch(local("*"), f"http://img.test:{port}/endless")


def test_a_host_that_stalls_is_given_up_at_the_timeout() -> None:
    began = time.monotonic()
    with image_host() as (port, _), pytest.raises(ImageUrlFailed, match=r"longer than 0\.3 s"):
        fetch(local("*", timeout_s=0.3), f"http://img.test:{port}/silent")
    assert time.monotonic() - began < 3


def test_a_missing_image_and_an_unreachable_host_are_reported() -> None:
    with image_host() as (port, _), pytest.raises(ImageUrlFailed, match="answered HTTP 404"):
        fetch(local("*"), f"http://img.test:{port}/missing")
    with pytest.raises(ImageUrlFailed, match="could not be fetched"):
        fetch(local("*"), "http://img.test:9/")
    with pytest.raises(ImageUrlFailed, match="the host has no address"):
        fetch(RemoteImages(("*",), resolve=Names([]).resolve, tls=TLS), "http://img.test/")


def test_https_verifies_the_host_name_although_the_address_is_pinned(tmp_path: Path) -> None:
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key "
        "-out certificate -subj /CN=img.test -addext subjectAltName=DNS:img.test"
    )
    subprocess.run(make, shell=True, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    host = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    host.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    reader = ssl.create_default_context(cafile=str(tmp_path / "certificate"))
    with image_host(tls=host) as (port, _):
        images = RemoteImages(("*",), resolve=Names([LOCAL]).resolve, allowed=is_local, tls=reader)
        assert fetch(images, f"https://img.test:{port}/a.jpg") == IMAGE
        with pytest.raises(ImageUrlFailed, match="could not be fetched"):
            fetch(images, f"https://other.test:{port}/a.jpg")
        with pytest.raises(ImageUrlFailed, match="could not be fetched"):
            fetch(local("*"), f"https://img.test:{port}/a.jpg")


@settings(deadline=None)
@given(st.text(max_size=30), st.sampled_from(["http://", "https://", "http://img.test", "http://img.test/", ""]))
def test_any_text_is_a_valid_url_or_an_error(text: str, start: str) -> None:
    images = RemoteImages(("img.test", "*.test"), resolve=Names(["10.0.0.1"]).resolve, tls=TLS)
    with pytest.raises(CaptionerError):
        fetch(images, start + text)


@pytest.mark.triton
def test_both_endpoints_caption_an_image_by_url(served: Served) -> None:
    with image_host() as (port, _):
        images = local(f"img.test:{port}")
        address = f"http://img.test:{port}/a.jpg"
        content = [{"type": "image_url", "image_url": {"url": address}}]
        with api_server(served.grpc, images=images) as url:
            plain = httpx.post(f"{url}/v1/captions", json={"image": address}).json()["caption"]
            body = {"model": "captioner", "messages": [{"role": "user", "content": content}]}
            chat = httpx.post(f"{url}/v1/chat/completions", json=body).json()
            file = httpx.post(f"{url}/v1/captions", files={"image": IMAGE}).json()["caption"]
    assert plain == chat["choices"][0]["message"]["content"] == file


def test_the_api_contacts_only_the_allowed_hosts() -> None:
    with api_server(DEAD, Options(image_hosts=("localhost", "img.test"))) as url:
        for address in ("http://other.test/", "http://localhost/", "http://localhost:9/"):
            answer = httpx.post(f"{url}/v1/captions", json={"image": address})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "IMAGE_URL_REFUSED"
