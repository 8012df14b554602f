"""Every benchmark and training command has a help text, runs, and ends in one line of JSON."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from benchmarks import device, engine
from benchmarks.baselines import BATCHED, SEQUENTIAL
from tests.benchmarks.conftest import Main
from tests.support.pages import Serve
from tests.support.served import ROOT, Served

BENCHMARKS = (
    "bulk",
    "decoding",
    "device",
    "endpoints",
    "engine",
    "night",
    "overload",
    "parity",
    "peers.__main__",
    "precision",
    "served",
    "soak",
)
TRAINING = ("__main__", "evaluate", "self_critical")


@pytest.mark.parametrize(
    "module", [*(f"benchmarks.{name}" for name in BENCHMARKS), *(f"training.{name}" for name in TRAINING)]
)
def test_every_command_has_a_help_text(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(module).main()
    assert f"python -m {module.removesuffix('.__main__')}" in capsys.readouterr().out


def test_the_decoding_benchmark_measures_photos_and_the_largest_files(main: Main) -> None:
    document: Any = json.loads(main("benchmarks.decoding", "--rounds 2 --side-px 64")[-1])
    assert len(document["ordinary"]) > 4
    assert {"JPEG", "AVIF"} < document["largest"].keys()


@pytest.mark.usefixtures("tiny_model")
def test_the_engine_benchmark_compares_captions_of_the_same_lengths_with_generate(main: Main) -> None:
    limits = "--alone-s 0.02 --batch-s 60"
    lines = main("benchmarks.engine", f"--size tiny --concurrency 1 16 --requests 16 --rounds 1 --threads 1 {limits}")
    document: Any = json.loads(lines[-1])
    assert (document["benchmark"], document["model"], document["machine"]["threads"]) == ("engine", "vit-gpt2", 1)
    results = document["results"]
    assert results[engine.ENGINE].keys() == {"1", "16"} and results[BATCHED[1].name].keys() == {"16"}
    assert results[SEQUENTIAL.name]["16"]["ttft_is_lower_bound"]
    assert not results[SEQUENTIAL.name]["1"]["ttft_is_lower_bound"]
    equal, compared = document["equal_captions"].split(" of ")
    assert equal == compared != "0"
    assert all(ratio > 0 for ratio in document["ratios"].values())
    assert any(line.startswith(f"| 16 | {engine.ENGINE} | ") for line in lines)


@pytest.mark.exhaustive
@pytest.mark.triton
@pytest.mark.usefixtures("tiny_model")
def test_the_served_benchmark_measures_the_same_captions_on_both_sides(main: Main) -> None:
    arguments = "--size tiny --concurrency 2 --requests 4 --rounds 1 --threads 1"
    document = json.loads(main("benchmarks.served", arguments)[-1])
    assert document["served"]["2"]["captions"] == document["in_process"]["2"]["captions"] == 4


def test_the_device_benchmark_runs_on_tiny_dimensions() -> None:
    document: Any = device.measure("tiny", "bf16", [1, 3], torch.device("cpu"))
    assert document["machine"]["device"] == "cpu" and document["results"].keys() == {1, 3}
    assert document["share_of_bandwidth_at_1"] is not None and document["results"][3]["decode_tokens_per_s"] > 0


def test_the_device_benchmark_reports_that_there_is_no_device(main: Main) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    sentence, last = main("benchmarks.device", "")
    assert "not run" in sentence and json.loads(last)["run"] is False


@pytest.mark.exhaustive
@pytest.mark.triton
@pytest.mark.browser
def test_every_endpoint_is_compared_with_grpc(served: Served, serve_page: Serve) -> None:
    arguments = ["--server", served.grpc, "--page", serve_page(served.grpc), "--photos", "3"]
    # In a process of its own: Playwright's synchronous API allows one instance per thread.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.endpoints", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["grpc_first_text_p50_ms"] < document["grpc_total_p50_ms"]
    for endpoint in ("captions", "file", "chat", "responses", "ollama", "huggingface", "azure", "page"):
        added = document[f"{endpoint}_total_added_ms"]
        assert added["low"] <= added["median"] <= added["high"]


@pytest.mark.triton
def test_the_bulk_job_is_compared_with_photos_in_memory(main: Main, served: Served) -> None:
    document = json.loads(main("benchmarks.bulk", f"--server {served.grpc} --photos 16 --rounds 2 --in-flight 8")[-1])
    assert 0 < document["job_over_memory"]["low"] <= document["job_over_memory"]["high"]


@pytest.mark.exhaustive
@pytest.mark.triton
@pytest.mark.parametrize("endpoint", ["grpc", "http"])
def test_the_overload_benchmark_counts_every_request(main: Main, served: Served, page_url: str, endpoint: str) -> None:
    page = f" --page {page_url}" if endpoint == "http" else ""
    lines = main("benchmarks.overload", f"--server {served.grpc} --seconds 2 --in-flight 8 --deadline-ms 2000{page}")
    document: Any = json.loads(lines[-1])
    assert document["endpoint"] == endpoint and document["capacity_per_s"] > 0
    for each in document["loads"]:
        late = each["sent"] - each["captions_in_time"] - sum(each["codes"].values())
        assert 0 <= late <= each["sent"]
    assert max(each["goodput_over_peak"] for each in document["loads"]) == 1
    assert lines[0].startswith("| load | sent |") and lines[-2].startswith("| 4× |")
