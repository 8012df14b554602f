"""The workload, the closed loop and the metrics that the benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import in_process, served
from benchmarks.measurement import Round, percentile, summary
from benchmarks.published import Published
from benchmarks.workload import MAX_TOKENS, MIN_TOKENS, Workload, workload
from captioner.serving.settings import Settings


def test_the_workload_is_the_same_for_the_same_seed(tiny_model: Published) -> None:
    first, second, other = workload(tiny_model, 40), workload(tiny_model, 40), workload(tiny_model, 40, seed=1)
    assert first.requests == second.requests != other.requests
    assert torch.equal(first.features, second.features)
    assert all(MIN_TOKENS <= request.tokens <= MAX_TOKENS for request in first.requests)


@pytest.mark.timeout(60)
def test_a_failing_request_ends_the_round_with_its_error(tiny_model: Published) -> None:
    work = workload(tiny_model, 2)
    runner = in_process.runner(tiny_model, 2, work)
    broken = Workload(work.requests, work.features[:, :, :-1], work.prompt_ids)
    with pytest.raises(ValueError, match="shape"):
        in_process.run(runner, broken, 2)


def test_percentiles_and_spread_include_unserved_requests() -> None:
    assert [percentile([4, 1, 3, 2], percent) for percent in (0, 25, 50, 99)] == [1, 1, 2, 4]
    one = Round(seconds=2.0, unserved_ms=[3000.0])
    one.add(0, [7] * 10, sent=0.0, first=0.5, ended=1.4)
    result = summary([one, Round(seconds=1.0, tokens=15, ttft_ms=[100.0])])
    assert (result["tokens_per_s"], result["tokens_per_s_low"], result["tokens_per_s_high"]) == (10.0, 5.0, 15.0)
    assert (result["ttft_p50_ms"], result["ttft_p99_ms"], result["ttft_is_lower_bound"]) == (500.0, 3000.0, True)
    assert result["tpot_p50_ms"] == 100.0


def test_the_served_copy_has_its_own_settings_and_the_published_model_is_unchanged(
    tiny_model: Published, tmp_path: Path
) -> None:
    repository = served.repository(tiny_model, tmp_path / "repository", threads=3)
    config = (repository / "captioner" / "config.pbtxt").read_text()
    assert '{ key: "slots" value: { string_value: "16" } }' in config and '{ string_value: "3" }' in config
    assert config.count('"slots"') == config.count('"decode_threads"') == 1
    assert Settings.parse({"slots": "16", "decode_threads": "3"}).decode_threads == 3
    assert tiny_model.manifest().stop_ids
    assert (repository / "captioner/1/decoder/model.safetensors").is_file()


def test_the_servers_overhead_is_the_difference_to_the_engine_in_process() -> None:
    through, direct = served.ServedRound(transport_ttft_ms=[1.5], transport_tpot_ms=[0.25]), Round()
    through.add(0, [0] * 11, sent=0.0, first=0.012, ended=1.012)
    direct.add(0, [0] * 11, sent=0.0, first=0.010, ended=0.910)
    added, transport = served.added([through], [direct]), served.transport([through])
    assert (added["ttft_p50_ms"], added["tpot_p99_ms"]) == (2.0, 10.0)
    assert (transport["ttft_p99_ms"], transport["tpot_p50_ms"]) == (1.5, 0.25)
    text = served.table({"transport": {4: transport}, "added": {4: added}})
    assert text.splitlines()[2].startswith("| 4 | transport | +1.50 ms |")
