"""A client with several replicas: requests fail over, and text is not repeated. A proxy makes the real server fail."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from captioner.client import Client, ImageSource, replica
from captioner.errors import (
    AccessDenied,
    CaptionerError,
    CaptionsDiffer,
    DeadlineExceeded,
    ImageMissing,
    ParameterInvalid,
    ServerUnreachable,
    StreamStalled,
)
from captioner.examples import PHOTOS
from tests.support.proxy import Proxy
from tests.support.served import Served, assert_soon, metric

pytestmark = pytest.mark.triton

PHOTO = next(path for path in PHOTOS if path.name == "cat.jpg")
DEAD = "127.0.0.1:9"  # no server listens here

Make = Callable[..., Proxy]


@pytest.fixture
def proxy(served: Served) -> Iterator[Make]:
    """`proxy()`: another replica."""
    made: list[Proxy] = []

    def make(tls: tuple[bytes, bytes] | None = None) -> Proxy:
        made.append(Proxy(served.grpc, tls))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients try the replicas in the order of their addresses, not at random."""
    monkeypatch.setattr(replica, "random", SimpleNamespace(random=lambda: 0.0))


@pytest.fixture(scope="module")
def expected(served: Served) -> str:
    """The caption of PHOTO, without a proxy."""
    with Client(served.grpc) as client:
        return client.caption(PHOTO).text


@pytest.mark.parametrize("fault", ["unavailable", "break_after", "stall_after"])
def test_a_request_fails_over_to_another_replica(proxy: Make, expected: str, in_order: None, fault: str) -> None:
    bad, good = proxy(), proxy()
    setattr(bad.faults, fault, 0)
    bad.faults.unavailable = fault == "unavailable"
    with Client([bad.address, good.address], stall_timeout_s=2) as client:
        assert client.caption(PHOTO).text == expected
    tried = bad.faults.requests
    assert tried and good.faults.requests == 1
    with Client(f"{bad.address}, {good.address}", stall_timeout_s=2) as client:
        assert client.describe().model
    assert bad.faults.requests > tried and good.faults.requests == 2


def test_a_request_fails_over_from_an_address_without_a_server(proxy: Make, expected: str, in_order: None) -> None:
    with Client([DEAD, proxy().address]) as client:
        assert client.caption(PHOTO).text == expected


@pytest.mark.parametrize(
    ("fault", "temperature"),
    [
        ("break_after", 1.5),  # a sampled caption: the client draws the seed
        pytest.param("break_after", 0.0, marks=pytest.mark.exhaustive),
        pytest.param("stall_after", 0.0, marks=pytest.mark.exhaustive),
        pytest.param("stall_after", 1.5, marks=pytest.mark.exhaustive),
    ],
)
def test_a_stream_that_breaks_continues_on_another_replica_without_repeated_text(
    proxy: Make, in_order: None, fault: str, temperature: float
) -> None:
    bad, good = proxy(), proxy()
    setattr(bad.faults, fault, 3)
    with Client([bad.address, good.address], stall_timeout_s=2) as client:
        with client.stream(PHOTO, length="long", temperature=temperature) as stream:
            text = "".join(stream)
        assert stream.details is not None
        assert (bad.faults.requests, good.faults.requests) == (1, 1)
        assert text == client.caption(PHOTO, length="long", temperature=temperature, seed=stream.details.seed).text


def test_the_different_caption_of_another_replica_is_not_appended(
    proxy: Make, in_order: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = proxy(), proxy()
    bad.faults.break_after = 3
    seeds = itertools.count()
    send = replica.Replica.send

    async def send_with_another_seed(
        self: replica.Replica, inputs: object, parameters: dict[str, object], left_s: object
    ) -> object:
        return await send(self, inputs, {**parameters, "seed": next(seeds)}, left_s)  # type: ignore[arg-type]

    # Replicas that serve different revisions would generate different captions.
    monkeypatch.setattr(replica.Replica, "send", send_with_another_seed)
    pieces: list[str] = []
    with Client([bad.address, good.address]) as client, pytest.raises(CaptionsDiffer):
        pieces.extend(client.stream(PHOTO, length="long", temperature=2.0))
    assert pieces
    assert (bad.faults.requests, good.faults.requests) == (1, 1)


def test_a_failed_replica_is_tried_last_and_the_others_share_the_load(proxy: Make) -> None:
    bad, first, second = proxy(), proxy(), proxy()
    bad.faults.unavailable = True
    with Client([bad.address, first.address, second.address]) as client:
        captions = list(client.caption_many([PHOTO] * 40, in_flight=8))
    assert [captioned.error for captioned in captions if captioned.error] == []
    assert bad.faults.requests <= 16  # requests in flight when it failed, once each
    assert min(first.faults.requests, second.faults.requests) >= 10


def test_a_refused_request_does_not_fail_over(proxy: Make) -> None:
    one, other = proxy(), proxy()
    with Client([one.address, other.address]) as client:
        with pytest.raises(CaptionerError) as refused:
            client.caption(b"no image")
        assert refused.value.code == "IMAGE_FORMAT_UNKNOWN"
        with pytest.raises(DeadlineExceeded):
            client.caption(PHOTO.read_bytes() + b"never seen", deadline_ms=1)
    assert one.faults.requests + other.faults.requests == 2


def test_the_last_replicas_error_is_raised_when_all_fail(proxy: Make) -> None:
    broken, silent = proxy(), proxy()
    # Not `unavailable`: grpc.aio loses an error that arrives while it writes, and then the client writes again.
    broken.faults.break_after, silent.faults.stall_after = 0, 0
    with Client([broken.address, silent.address], stall_timeout_s=0.5) as client:
        with pytest.raises((ServerUnreachable, StreamStalled)):
            client.caption(PHOTO)
        assert broken.faults.requests == silent.faults.requests == 1


def test_one_deadline_covers_all_replicas_and_ends_a_silent_stream(proxy: Make) -> None:
    silent, other = proxy(), proxy()
    silent.faults.stall_after = other.faults.stall_after = 0
    began = time.monotonic()
    with Client([silent.address, other.address], stall_timeout_s=60) as client, pytest.raises(DeadlineExceeded):
        client.caption(PHOTO, deadline_ms=500)
    assert time.monotonic() - began < 5


def test_caption_many_yields_each_image_once_with_its_own_error(served: Served) -> None:
    images: list[ImageSource] = [PHOTO, b"", *PHOTOS, b"no image", PHOTO]
    with Client(served.grpc) as client:
        captioned = list(client.caption_many(iter(images), in_flight=3, length="short"))
    assert sorted(map(str, (each.image for each in captioned))) == sorted(map(str, images))
    failed = {each.image: each.error for each in captioned if each.error}
    assert isinstance(failed.pop(b""), ImageMissing)
    assert failed.keys() == {b"no image"}
    assert all(each.caption for each in captioned if each.error is None)


def test_leaving_caption_many_early_ends_the_decoding(served: Served) -> None:
    with Client(served.grpc) as client:
        for captioned in client.caption_many(itertools.repeat(PHOTO), length="long", in_flight=4):
            assert captioned.caption
            break
        assert_soon(lambda: metric(served, "captioner_running") == 0)


def certificate() -> tuple[bytes, bytes]:
    """A private key and a self-signed certificate for 127.0.0.1, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "captioner test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, made.public_bytes(pem)


def test_an_endpoint_with_tls_and_a_key_needs_both(proxy: Make, expected: str) -> None:
    tls = certificate()
    protected = proxy(tls)
    protected.faults.key = "Bearer open-sesame"
    address, headers = f"grpcs://{protected.address}", {"Authorization": "Bearer open-sesame"}
    with Client(address, headers=headers, root_certificates=tls[1]) as client:
        assert client.caption(PHOTO).text == expected
    with Client(address, root_certificates=tls[1]) as client, pytest.raises(AccessDenied):
        client.caption(PHOTO)
    with Client(address, headers=headers) as client, pytest.raises(ServerUnreachable):  # an unknown certificate
        client.caption(PHOTO)


@pytest.mark.parametrize("addresses", ["", " , ", []])
def test_no_address_is_refused(addresses: str) -> None:
    with pytest.raises(ParameterInvalid):
        Client(addresses)
