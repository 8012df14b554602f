"""`captioner bench`: the closed loop of clients, its summary and its table."""

from __future__ import annotations

import asyncio
import itertools
import json
import time

import pytest

from captioner.cli import main, parser
from captioner.client import AsyncClient
from captioner.client.load_test import Round, run_round, summary, unique_images
from captioner.examples import PHOTOS
from captioner.image.decode import decode
from tests.support.served import Served

LINES = ("captions_per_s", "first_text_ms_p50", "first_text_ms_p99", "token_ms_p50")


@pytest.mark.triton
@pytest.mark.slow
def test_it_measures_the_given_photos_and_prints_one_line_for_each_concurrency(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(PHOTOS[0]), "--server", served.grpc, "--concurrency", "1", "4", "--captions", "6"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "captioner-embedded@" in lines[0] and "on cpu, 6 captions a round" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["1", "4"]
    assert all(float(line.split()[1]) > 0 for line in lines[2:])
    assert main([*words, "--json", "--rounds", "2", "--max-tokens", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    for cell in found["concurrency"].values():
        assert all(cell[name] > 0 for name in LINES)
        assert cell["captions_per_s_low"] <= cell["captions_per_s"] <= cell["captions_per_s_high"]
        assert cell["first_text_ms_p50"] <= cell["first_text_ms_p99"]
        assert cell["tokens_per_s"] <= 3 * cell["captions_per_s_high"] + 1


@pytest.mark.triton
@pytest.mark.slow
def test_a_round_keeps_its_clients_busy_without_cache_hits(served: Served) -> None:
    async def rounds() -> tuple[Round, float]:
        async with AsyncClient(served.grpc) as client:
            began = time.perf_counter()
            found = await run_round(client, unique_images([PHOTOS[0].read_bytes()]), 3, 9, max_tokens=8)
            return found, time.perf_counter() - began

    found, seconds = asyncio.run(rounds())
    assert len(found.total_ms) == len(found.first_text_ms) == len(found.token_ms) == 9
    assert found.captions_per_s == pytest.approx(9 / seconds, rel=0.2)
    idle_at_the_end = 2 * max(found.total_ms) / 1000  # the last caption may begin when the other two clients end
    assert 2.9 * seconds - idle_at_the_end < sum(found.total_ms) / 1000 <= 3 * seconds


def test_marked_photos_are_different_files_of_the_same_picture() -> None:
    photo = PHOTOS[0].read_bytes()
    files = list(itertools.islice(unique_images([photo]), 3))
    assert len({photo, *files}) == 4
    assert all(decode(file)[0].tobytes() == decode(photo)[0].tobytes() for file in files)


def test_a_summary_covers_all_rounds() -> None:
    one, two = Round(2.0, 20.0, [10.0] * 99, [30.0], [5.0]), Round(4.0, 40.0, [90.0], [50.0], [7.0])
    found = summary([one, two])
    assert (found["captions_per_s"], found["captions_per_s_low"], found["captions_per_s_high"]) == (3.0, 2.0, 4.0)
    assert (found["first_text_ms_p50"], found["token_ms_p50"], found["tokens_per_s"]) == (10.0, 6.0, 30.0)


def test_an_unreadable_photo_ends_the_command_before_any_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "/nowhere.jpg", "--server", "127.0.0.1:9"]) == 2
    assert "/nowhere.jpg: No such file" in capsys.readouterr().err


def test_an_unreachable_server_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--server", "127.0.0.1:9"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("SERVER_UNREACHABLE: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [["--captions", "0"], ["--concurrency", "-1"], ["--rounds", "x"]])
def test_counts_are_at_least_one(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["bench", *words])
