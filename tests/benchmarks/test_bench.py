"""The benchmark beside the peers: its arithmetic, and that nobody is left out without a word."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from peers.ceiling import ImageSize, arithmetic_ops
from peers.contestants import Contestant, Prepared
from peers.environments import MissingPeerError, run_logged
from peers.protocol import Outcome, Task
from peers.report import Results, Run, tables
from peers.rounds import Benchmark, some_of
from PIL import Image

TASK = Task(["a.jpg", "b.jpg"], "What?", 65_536, 262_144, new_tokens=8, threads=1, sequences=2)


def a_run(contestant: str, round_number: int, wall_s: float) -> Run:
    outcome = Outcome(images=10, new_tokens=640, visual_tokens=1000, wall_s=wall_s, precision="INT4")
    return Run(round_number, contestant, outcome, start_up_s=1.0, peak_memory_mib=2048.0, load_before=0.0)


def results_of(runs: list[Run], missing: dict[str, str] | None = None) -> Results:
    return Results({}, {}, 3e12, {"fp32_gops": 200.0, "int8_gops": 1000.0, "memory_gb_per_s": 9e9}, runs, missing or {})


def test_ratio_is_the_median_of_pairs_of_one_round() -> None:
    ours = [a_run("ours", number, wall_s) for number, wall_s in enumerate((10.0, 20.0, 40.0))]
    theirs = [a_run("theirs", number, wall_s) for number, wall_s in enumerate((20.0, 20.0, 60.0))]

    results = results_of([*ours, *theirs])

    assert results.ratio("ours", "theirs") == pytest.approx(1.5)  # of 2, 1 and 1.5; the medians' ratio would be 1
    assert results.ratio("theirs", "ours") == pytest.approx(1 / 1.5)


def test_rounds_that_one_of_two_did_not_finish_are_no_pairs() -> None:
    results = results_of([a_run("ours", 0, 10.0), a_run("ours", 1, 10.0), a_run("theirs", 1, 30.0)])

    assert results.ratio("ours", "theirs") == pytest.approx(3.0)
    assert results.ratio("ours", "nobody") is None


def test_a_slow_peer_gets_fewer_images_of_the_same_mean_size(tmp_path: Path) -> None:
    widths = [256 + 8 * ((7 * number) % 16) for number in range(16)]
    paths = [tmp_path / f"{number}.png" for number in range(16)]
    for path, width in zip(paths, widths, strict=True):
        Image.new("RGB", (width, 512)).save(path)
    width_of = dict(zip(map(str, paths), widths, strict=True))

    given = some_of(replace(TASK, images=list(width_of)), 4).images

    assert len(set(given)) == 4
    assert sum(map(width_of.__getitem__, given)) / 4 == pytest.approx(sum(widths) / 16, rel=0.02)
    assert some_of(TASK, 1) == TASK


def test_share_of_the_ceiling_is_of_the_fastest_product() -> None:
    results = results_of([a_run("ours", 0, 60.0)])  # 10 images of 3e12 operations in a minute, of 1e12 a second

    assert results.ceiling_share("ours") == pytest.approx(0.5)


def test_table_shows_rates_and_who_is_missing() -> None:
    text = tables(
        results_of([a_run("ours", 0, 60.0), a_run("theirs", 0, 120.0)], {"third": "no wheel for this Python"})
    )

    ours = next(line for line in text.splitlines() if line.startswith("| ours |"))
    assert "| 10.0 | 10.7 |" in ours
    assert "2.00" in ours or "| ours | 1.00 | 2.00 |" in text
    assert "missing: third: no wheel for this Python" in text


def test_contestants_that_saw_other_images_are_noted() -> None:
    odd = Outcome(images=10, new_tokens=600, visual_tokens=500, wall_s=1.0, precision="INT4")

    text = tables(results_of([a_run("ours", 0, 60.0), Run(0, "theirs", odd, 0.0, 0.0, 0.0)]))

    ours = "100 visual tokens and 64 new ones"
    assert f"note: an image of theirs: 50 visual tokens and 60 new ones, of ours: {ours}" in text


def test_a_contestant_that_captioned_fewer_images_is_noted() -> None:
    slow = Outcome(images=5, new_tokens=320, visual_tokens=500, wall_s=60.0, precision="fp32")

    text = tables(results_of([a_run("ours", 0, 60.0), Run(0, "theirs", slow, 0.0, 0.0, 0.0)]))

    assert "note: theirs captioned 5 images of 10" in text
    assert "an image of theirs" not in text


def test_json_holds_runs_and_summary() -> None:
    values = json.loads(json.dumps(results_of([a_run("ours", 0, 60.0), a_run("theirs", 0, 120.0)]).as_json()))

    assert values["summary"]["ours"]["ratio_to"] == {"theirs": 2.0}
    assert [run["outcome"]["wall_s"] for run in values["runs"]] == [60.0, 120.0]


def test_a_peer_that_cannot_be_installed_is_named(tmp_path: Path) -> None:
    def prepare(work: Path) -> Prepared:
        run_logged([sys.executable, "-c", "raise SystemExit('no matching distribution')"], work)
        return Prepared(Path(sys.executable), work)

    benchmark = Benchmark(tmp_path, tmp_path, TASK, missing={})

    prepared = benchmark.prepare([Contestant("peer", "peers.run_openvino", prepare)])

    assert prepared == {}
    assert "no matching distribution" in benchmark.missing["peer"]
    assert "missing: peer: " in tables(results_of([], benchmark.missing))


def test_a_peer_that_fails_while_it_runs_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (Contestant(name, f"peers.{name}", lambda work: Prepared(work, work)) for name in ("good", "bad"))

    def run(_: Benchmark, contestant: Contestant, _prepared: Prepared, number: int) -> Run:
        if contestant is bad:
            raise MissingPeerError("ended with -9")
        return a_run(contestant.name, number, 1.0)

    monkeypatch.setattr(Benchmark, "_run", run)
    monkeypatch.setattr(Benchmark, "_ceilings", lambda _: {"int8_gops": 1.0})
    monkeypatch.setattr(Benchmark, "_mean_image", lambda *_: ImageSize(4, 2, 8))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    benchmark = Benchmark(tmp_path, tmp_path, TASK, missing={})

    results = benchmark.run({each: each.prepare(tmp_path) for each in (bad, good)}, rounds=2)

    assert results.missing == {"bad": "failed in round 1: ended with -9"}
    assert [run.contestant for run in results.runs] == ["good", "good"]


CONFIG = {
    "vision_config": {
        "hidden_size": 1,
        "depth": 1,
        "spatial_merge_size": 2,
        "in_channels": 1,
        "temporal_patch_size": 1,
        "patch_size": 1,
        "intermediate_size": 1,
        "out_hidden_size": 1,
        "deepstack_visual_indexes": [],
    },
    "text_config": {
        "hidden_size": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 1,
        "intermediate_size": 1,
        "vocab_size": 10,
    },
}


def test_arithmetic_of_a_model_of_ones_can_be_counted_by_hand() -> None:
    # Vision, 4 patches: embedding 4, products 4 · (4 + 2), attention 4 · 4 · 2, merger 4 · 4 + 4.
    # Decoder, 3 + 2 - 1 tokens: products 4 · (2 + 2 + 3), attention 2 · (1 + 2 + 3 + 4), head 2 · 10.
    products = (4 + 24 + 32 + 20) + (28 + 20 + 20)

    assert arithmetic_ops(CONFIG, ImageSize(patches=4, prompt_tokens=3, new_tokens=2)) == 2 * products


@pytest.mark.parametrize("output", ["", "loading …\n", '{"images": 1}', "[1]"])
def test_output_without_a_result_is_an_error(output: str) -> None:
    with pytest.raises(ValueError, match="printed no result"):
        Outcome.of_output(output)


def test_task_survives_its_file(tmp_path: Path) -> None:
    TASK.write(tmp_path / "task.json")

    assert Task.read(tmp_path / "task.json") == TASK
