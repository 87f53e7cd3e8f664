"""Where a run's numbers, texts and pictures go: TensorBoard, Weights & Biases, Trackio."""

import base64
import importlib
import io
import json
import os
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from PIL import Image

from rdbcl_jax.config import LogConfig
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.reporting.services import check_services

CONFIG = {"method": "rdbcl", "kl": {"beta": 0.1}}


def png():
    buffer = io.BytesIO()
    Image.new("L", (5, 3), 128).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write(workdir, to, resume_step=0, steps=(0, 1)):
    """What a run of one task writes."""
    with RunLog(workdir, resume_step=resume_step, log=LogConfig(to=to), config=CONFIG) as log:
        for step in steps:
            log.write_step({"step": step, "task": "sum", "reward": 0.5 + step})
        log.write_row("test", {"sum": 0.25}, "| % | sum |\n|---|---:|\n| base | 25.0 |", steps[-1])
        example = {"task": "sum", "step": steps[-1], "prompt": "sum 7", "tokens": ["<think>", "4"]}
        log.write_examples([{**example, "images": [png()], "reward": 1.2, "correct": True}])


def test_tensorboard_has_accuracies_matrix_pictures_texts_and_config(runs):
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    sizes = {"images": 0, "tensors": 0}
    events = accumulator.EventAccumulator(str(runs / "rdbcl-0" / "tb"), sizes).Reload()
    results = json.loads((runs / "rdbcl-0" / "results.json").read_text())
    rows = results["splits"]["test"]["accuracy"]
    shown = events.Scalars("accuracy/test/jigsaw")
    assert [e.step for e in shown] == [0, 2, 5]  # 3 steps a task; row 0 is the base model's
    assert [e.value for e in shown] == pytest.approx([row[1] for row in rows])

    def text(name):
        (last, *_) = reversed(events.Tensors(f"{name}/text_summary"))
        return last.tensor_proto.string_val[0].decode()

    assert "| after jigsaw |" in text("accuracy/test") and '"beta_max": 0.08' in text("config")
    assert "gold answer" in text("examples/sum/0") and "reward" in text("examples/jigsaw/1")
    matrices = events.Images("accuracy/test/matrix")
    assert [e.step for e in matrices] == [2, 5]
    assert matrices[0].encoded_image_string != matrices[1].encoded_image_string
    for picture in (*matrices, *events.Images("examples/sum/picture/0")):
        image = Image.open(io.BytesIO(picture.encoded_image_string))
        assert image.size == (picture.width, picture.height)


def test_answers_of_every_evaluation_are_kept(runs):
    workdir = runs / "rdbcl-0"
    results = json.loads((workdir / "results.json").read_text())
    assert [p.name for p in sorted((workdir / "answers").iterdir())] == [
        f"{row:03d}.parquet" for row in range(3)
    ]
    for row, path in enumerate(sorted((workdir / "answers").iterdir())):
        table = pq.read_table(path).to_pandas()
        for split in ("test", "validation"):
            for k, task in enumerate(("sum", "jigsaw", "alt")):
                own = table[(table.split == split) & (table.task == task)]
                found = results["splits"][split]
                assert len(own) == found["count"][k] and own.record_id.is_unique
                assert own.accuracy.mean() == pytest.approx(found["accuracy"][row][k])
                assert own.parsed.mean() == pytest.approx(found["parse_rate"][row][k])
    assert own.gold.str.len().min() > 0 and (own.row == 2).all()


def test_a_profile_for_perfetto_and_tensorboard(runs):
    (folder,) = (runs / "killed" / "tb/plugins/profile").iterdir()
    names = {path.name.partition(".")[2] for path in folder.iterdir()}
    assert "xplane.pb" in names and (folder / "perfetto_trace.json.gz").stat().st_size > 1000
    assert not (runs / "rdbcl-0" / "tb/plugins").exists()


OFFLINE = """
import sys
from tests.reporting.test_writers import write
write(sys.argv[1], (sys.argv[2],))
write(sys.argv[1], (sys.argv[2],), resume_step=2, steps=(2, 3))
"""


def offline(workdir, service, **environment):
    """Runs of one workdir in a process of their own, as services keep threads and processes."""
    words = [sys.executable, "-c", OFFLINE, str(workdir), service]
    environment = {**os.environ, **environment}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def records(log):
    """Of a LevelDB log, which .wandb files are: blocks of 32 KiB, and parts with a head of 7 bytes
    each: checksum, length, and whether it is whole (1), the first (2), a middle (3) or the last."""
    at, found = 7, b""
    while at + 7 <= len(log):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        found, at = found + log[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            yield found
            found = b""


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    offline(tmp_path, "wandb", WANDB_MODE="offline")
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    own = (tmp_path / "wandb.id").read_text()
    # one run, resumed; of two in one second the later one's folder ends in -1
    name = rf"offline-run-\d+_\d+-{own}(-1)?"
    assert len(folders) == 2 and all(re.fullmatch(name, f.name) for f in folders)
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    history, config, names = [], {}, set()
    for folder in folders:
        for data in records(next(folder.glob("*.wandb")).read_bytes()):
            found = record.FromString(data)
            config |= {item.key: json.loads(item.value_json) for item in found.run.config.update}
            row = {
                (i.key or "/".join(i.nested_key)): json.loads(i.value_json)
                for i in found.history.item
            }
            names |= set(row)
            history += [(row["step"], row["reward"])] if "reward" in row else []
    assert history == [(0, 0.5), (1, 1.5), (2, 2.5), (3, 3.5)]
    assert config["method"] == "rdbcl" and config["kl"] == {"beta": 0.1}
    assert "accuracy/test/sum" in names
    for media in ("accuracy/test", "examples/sum/0", "examples/sum/picture/0"):
        assert f"{media}/sha256" in names
    assert list(folders[0].rglob("*.png"))


@pytest.mark.skipif(
    importlib.util.find_spec("trackio") is None,
    reason="installed by hand, see rdbcl_jax.reporting.services",
)
def test_trackio(tmp_path):
    offline(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    assert list((tmp_path / "trackio").glob("rdbcl*.db"))


def test_a_service_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_services(LogConfig())
    with pytest.raises(ValueError, match=r"names 'wandb', which is not installed: pip install"):
        check_services(LogConfig(to=("tensorboard", "wandb")))
