"""The benchmarks run, say what they claim to say and end in one JSON line; parity holds for every family."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import engine, in_process, parity, served
from benchmarks.baselines import BATCHED, SEQUENTIAL
from benchmarks.cells import Round, percentile, summary
from benchmarks.published import EMBEDDED_NAME, NAMES, Published, published
from benchmarks.workload import LONGEST, SHORTEST, Workload, workload
from captioner.serving.settings import Settings

ROOT = Path(__file__).parents[2]

torch.set_num_threads(1)  # with more, tensors this small only wait for one another


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="session")
def tiny_model(kept: Path) -> Published:
    return published("vit-gpt2", "tiny", kept=kept)


def run(module: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.slow) if name == EMBEDDED_NAME else name for name in NAMES]
)
def test_captions_of_a_crowd_are_those_of_generate_one_at_a_time(model: str, kept: Path) -> None:
    requests = 128 if model == EMBEDDED_NAME else 64  # of noise, the real model's captions are short
    report = parity.check(model, "tiny", requests=requests, seed=0, kept=kept)
    assert report.mismatches == []
    assert report.requests == requests and report.cancelled >= 5 and report.by_stop >= 5
    assert report.tokens >= 500 and report.different >= 30 and report.beams == 15


def test_a_parity_report_shows_what_differs() -> None:
    report = parity.Report("vit-gpt2", "tiny", 64, mismatches=["request 3, token 5: 1 for 2, logits 1.0e-07 apart"])
    text = parity.document([report], "python -m benchmarks.parity")
    assert "| vit-gpt2 | tiny | 64 |" in text and text.rstrip().endswith("logits 1.0e-07 apart")


def test_the_engine_and_generate_write_the_same_captions_of_the_lengths_that_were_drawn(tiny_model: Published) -> None:
    found = engine.measure(tiny_model, [1, 16], requests=16, rounds=1, limits_s=(0.02, 60.0))
    cells: Any = found["cells"]
    assert cells[engine.ENGINE].keys() == {1, 16} and cells[BATCHED[1].name].keys() == {16}
    assert cells[SEQUENTIAL.name][16]["ttft_is_at_least"] and not cells[SEQUENTIAL.name][1]["ttft_is_at_least"]
    ours, theirs = str(found["equal_captions"]).split(" of ")
    assert ours == theirs != "0"
    ratios: Any = found["ratios"]
    assert all(ratio > 0 for ratio in ratios.values())
    assert json.loads(json.dumps(found))["model"] == "vit-gpt2"
    assert f"| 16 | {engine.ENGINE} | " in engine.table(cells)


def test_a_caption_that_fails_ends_the_round_with_its_error(tiny_model: Published) -> None:
    work = workload(tiny_model, 2)
    runner = in_process.runner(tiny_model, 2, work)
    broken = Workload(work.requests, work.features[:, :, :-1], work.prompt_ids)
    with pytest.raises(ValueError, match="shape"):
        in_process.run(runner, broken, 2)


def test_the_workload_is_the_same_for_the_same_seed(tiny_model: Published) -> None:
    work, again, other = workload(tiny_model, 40), workload(tiny_model, 40), workload(tiny_model, 40, seed=1)
    assert work.requests == again.requests != other.requests
    assert torch.equal(work.features, again.features)
    assert all(SHORTEST <= request.tokens <= LONGEST for request in work.requests)


def test_percentiles_and_spread_count_who_was_never_served() -> None:
    assert [percentile([4, 1, 3, 2], percent) for percent in (0, 25, 50, 99)] == [1, 1, 2, 4]
    one = Round(seconds=2.0, unserved_ms=[3000.0])
    one.add(0, [7] * 10, sent=0.0, first=0.5, ended=1.4)
    found = summary([one, Round(seconds=1.0, tokens=15, ttft_ms=[100.0])])
    assert (found["tokens_per_s"], found["tokens_per_s_low"], found["tokens_per_s_high"]) == (10.0, 5.0, 15.0)
    assert (found["ttft_p50_ms"], found["ttft_p99_ms"], found["ttft_is_at_least"]) == (500.0, 3000.0, True)
    assert found["tpot_p50_ms"] == 100.0


def test_the_served_copy_has_its_own_settings_and_the_published_model_stays(
    tiny_model: Published, tmp_path: Path
) -> None:
    repository = served.repository(tiny_model, tmp_path / "repository", threads=3)
    config = (repository / "captioner" / "config.pbtxt").read_text()
    assert '{ key: "slots" value: { string_value: "16" } }' in config and '{ string_value: "3" }' in config
    assert config.count('"slots"') == config.count('"decode_threads"') == 1
    assert Settings.parse({"slots": "16", "decode_threads": "3"}).decode_threads == 3
    assert tiny_model.manifest().stop_ids
    assert (repository / "captioner/1/decoder/model.safetensors").is_file()


def test_what_the_server_adds_is_the_difference_of_both_sides() -> None:
    through, engine_ = served.ServedRound(transport_ttft_ms=[1.5], transport_tpot_ms=[0.25]), Round()
    through.add(0, [0] * 11, sent=0.0, first=0.012, ended=1.012)
    engine_.add(0, [0] * 11, sent=0.0, first=0.010, ended=0.910)
    added, transport = served.added([through], [engine_]), served.transport([through])
    assert (added["ttft_p50_ms"], added["tpot_p99_ms"]) == (2.0, 10.0)
    assert (transport["ttft_p99_ms"], transport["tpot_p50_ms"]) == (1.5, 0.25)
    text = served.table({"transport": {4: transport}, "added": {4: added}})
    assert text.splitlines()[2].startswith("| 4 | transport | +1.50 ms |")


def test_the_device_benchmark_runs_whole_on_tiny_dimensions() -> None:
    found = json.loads(run("device", "--dimensions", "tiny", "--slots", "1", "3")[-1])
    assert found["machine"]["device"] == "cpu" and found["cells"].keys() == {"1", "3"}
    assert found["share_of_bandwidth_at_1"] is not None and found["cells"]["3"]["decode_tokens_per_s"] > 0


def test_the_device_benchmark_says_that_it_was_not_run() -> None:
    sentence, last = run("device")
    assert "not run" in sentence and json.loads(last)["run"] is False


@pytest.mark.slow
def test_the_engine_benchmark_ends_in_one_json_line() -> None:
    arguments = "--size tiny --concurrency 1 4 --requests 8 --rounds 1 --threads 1"
    lines = run("engine", *arguments.split())
    found = json.loads(lines[-1])
    assert found["benchmark"] == "engine" and found["machine"]["threads"] == 1
    assert lines[-2].startswith("| 4 | ")


@pytest.mark.slow
@pytest.mark.triton
def test_the_served_benchmark_ends_in_one_json_line() -> None:
    arguments = "--size tiny --concurrency 2 --requests 4 --rounds 1 --threads 1"
    found = json.loads(run("served", *arguments.split())[-1])
    assert found["served"]["2"]["captions"] == found["in_process"]["2"]["captions"] == 4
