"""A client of several replicas: failures of one are another's work, and nothing is said twice."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from captioner.client import Client, ImageSource
from captioner.client.replica import Replica
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
DEAD = "127.0.0.1:9"  # nobody answers there

Make = Callable[..., Proxy]


@pytest.fixture
def proxy(served: Served) -> Iterator[Make]:
    """`proxy()`: one more replica."""
    made: list[Proxy] = []

    def make(tls: tuple[bytes, bytes] | None = None) -> Proxy:
        made.append(Proxy(served.grpc, tls))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def alone(served: Served) -> str:
    with Client(served.grpc) as client:
        return client.caption(PHOTO).text


@pytest.mark.parametrize("fault", ["away", "break_after", "silent_after"])
def test_a_caption_of_a_failing_replica_is_another_ones(proxy: Make, alone: str, fault: str) -> None:
    bad, good = proxy(), proxy()
    setattr(bad.faults, fault, 0)
    bad.faults.away = fault == "away"
    for addresses in ([bad.address, good.address], f"{good.address}, {bad.address}", [DEAD, good.address]):
        with Client(addresses, stall_timeout_s=1) as client:
            assert client.caption(PHOTO).text == alone
            assert client.describe().model
    assert good.faults.requests


@pytest.mark.parametrize("fault", ["break_after", "silent_after"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_stream_that_breaks_goes_on_elsewhere_and_says_nothing_twice(
    proxy: Make, fault: str, temperature: float
) -> None:
    """Also of a drawn caption: the client draws the seed."""
    bad, good = proxy(), proxy()
    setattr(bad.faults, fault, 3)
    went_on = 0
    with Client([bad.address, good.address], stall_timeout_s=1) as client, Client(good.address) as sure:
        for _ in range(20):  # which of the two is asked first is chance
            before = good.faults.requests
            began = bad.faults.requests
            with client.stream(PHOTO, length="long", temperature=temperature) as stream:
                text = "".join(stream)
            assert stream.details is not None
            assert text == sure.caption(PHOTO, length="long", temperature=temperature, seed=stream.details.seed).text
            went_on += bad.faults.requests > began and good.faults.requests > before
            if went_on:
                break
            time.sleep(0.05)
    assert went_on


def test_another_replicas_other_caption_is_not_sewn_on(proxy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = proxy(), proxy()
    bad.faults.break_after = 3
    seeds = itertools.count()
    ask = Replica.ask

    async def ask_differently(self: Replica, inputs: object, parameters: dict[str, object], left: object) -> object:
        return await ask(self, inputs, {**parameters, "seed": next(seeds)}, left)  # type: ignore[arg-type]

    monkeypatch.setattr(Replica, "ask", ask_differently)  # two replicas of two revisions would write two captions
    with Client([bad.address, good.address]) as client:
        for _ in range(20):
            said = ""
            try:
                for piece in client.stream(PHOTO, length="long", temperature=2.0):
                    said += piece
            except CaptionsDiffer:
                assert said
                return
    pytest.fail("the breaking replica was never asked first")


def test_a_failed_replica_rests_and_the_working_ones_share_the_work(proxy: Make) -> None:
    bad, first, second = proxy(), proxy(), proxy()
    bad.faults.away = True
    with Client([bad.address, first.address, second.address]) as client:
        captions = list(client.caption_many([PHOTO] * 40, in_flight=8))
    assert [captioned.error for captioned in captions if captioned.error] == []
    assert bad.faults.requests <= 16  # those in flight when it was found out, once each
    assert min(first.faults.requests, second.faults.requests) >= 10


def test_a_refusal_is_not_asked_of_another_replica(proxy: Make) -> None:
    one, other = proxy(), proxy()
    with Client([one.address, other.address]) as client:
        with pytest.raises(CaptionerError) as refused:
            client.caption(b"no image")
        assert refused.value.code == "IMAGE_FORMAT_UNKNOWN"
        with pytest.raises(DeadlineExceeded):
            client.caption(PHOTO.read_bytes() + b"never seen", deadline_ms=1)
    assert one.faults.requests + other.faults.requests == 2


def test_the_last_replicas_error_is_told_when_all_fail(proxy: Make) -> None:
    broken, silent = proxy(), proxy()
    # Not away: a refusal that comes while the request is written is lost by grpc.aio, and asked for again.
    broken.faults.break_after, silent.faults.silent_after = 0, 0
    with Client([broken.address, silent.address], stall_timeout_s=0.5) as client:
        with pytest.raises((ServerUnreachable, StreamStalled)):
            client.caption(PHOTO)
        assert broken.faults.requests == silent.faults.requests == 1


def test_a_deadline_holds_over_all_replicas_and_ends_a_silent_server(proxy: Make) -> None:
    silent, other = proxy(), proxy()
    silent.faults.silent_after = other.faults.silent_after = 0
    began = time.monotonic()
    with Client([silent.address, other.address], stall_timeout_s=60) as client, pytest.raises(DeadlineExceeded):
        client.caption(PHOTO, deadline_ms=500)
    assert time.monotonic() - began < 5


def test_many_images_come_each_once_with_its_own_error(served: Served) -> None:
    images: list[ImageSource] = [PHOTO, b"", *PHOTOS, b"no image", PHOTO]
    with Client(served.grpc) as client:
        captioned = list(client.caption_many(iter(images), in_flight=3, length="short"))
    assert sorted(map(str, (each.image for each in captioned))) == sorted(map(str, images))
    failed = {each.image: each.error for each in captioned if each.error}
    assert isinstance(failed.pop(b""), ImageMissing)
    assert failed.keys() == {b"no image"}
    assert all(each.caption for each in captioned if each.error is None)


def test_leaving_many_images_early_ends_their_decoding(served: Served) -> None:
    with Client(served.grpc) as client:
        for captioned in client.caption_many(itertools.repeat(PHOTO), length="long", in_flight=4):
            assert captioned.caption
            break
        assert_soon(lambda: metric(served, "captioner_running") == 0)


def certificate() -> tuple[bytes, bytes]:
    """A private key and a certificate for 127.0.0.1, signed by itself."""
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


def test_tls_and_a_key_open_a_guarded_door_and_nothing_else_does(proxy: Make, alone: str) -> None:
    tls = certificate()
    guarded = proxy(tls)
    guarded.faults.key = "Bearer open-sesame"
    address, headers = f"grpcs://{guarded.address}", {"Authorization": "Bearer open-sesame"}
    with Client(address, headers=headers, root_certificates=tls[1]) as client:
        assert client.caption(PHOTO).text == alone
    with Client(address, root_certificates=tls[1]) as client, pytest.raises(AccessDenied):
        client.caption(PHOTO)
    with Client(address, headers=headers) as client, pytest.raises(ServerUnreachable):  # a certificate nobody knows
        client.caption(PHOTO)


@pytest.mark.parametrize("addresses", ["", " , ", []])
def test_no_address_is_refused(addresses: str) -> None:
    with pytest.raises(ParameterInvalid):
        Client(addresses)
