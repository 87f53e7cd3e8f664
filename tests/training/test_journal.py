"""What a run says of itself."""

import json
import types

from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.records import Record
from rdbcl_jax.reporting.report import write_report
from rdbcl_jax.reporting.run_log import RunLog
from rdbcl_jax.results import RunResults, SplitResults, read_results, write_results
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.training.journal import Journal
from rdbcl_jax.training.resume import Start


def setup_of(*names):
    tasks = [
        types.SimpleNamespace(name=name, test=[Record("r", "any", "?", (), "", "exact", {})])
        for name in names
    ]
    given = dict(tasks=tasks, held_out=[], evaluated=tasks, replaced=[], notes=[])
    return types.SimpleNamespace(config=RunConfig(method="grpo"), mesh=make_mesh(), **given)


def test_times_are_those_of_earlier_calls_too(tmp_path):
    write_results(tmp_path, RunResults(timing={"base": 3.0, "learning": 5.0, "total": 9.0}))
    journal = Journal(tmp_path, setup_of(), Start(done=1, results=True))
    with journal, journal.timed("learning"):
        pass
    journal.write_results("running")
    timing = read_results(tmp_path).timing
    assert timing["base"] == 3.0 and timing["learning"] > 5.0 and timing["total"] > 9.0


def test_what_a_run_is_stands_in_its_results_before_its_first_evaluation(tmp_path):
    earlier = {"test": SplitResults(accuracy=[[0.5]], parse_rate=[[1.0]], count=[4])}
    write_results(tmp_path, RunResults(tasks=["other"], splits=earlier))  # which saved nothing
    with Journal(tmp_path, setup_of("sum", "walk"), Start()):
        text = write_report(tmp_path).read_text()
    assert "<h1>GRPO on 2 tasks" in text and "partial: before its first evaluation" in text
    assert "0 of" not in text and "other" not in read_results(tmp_path).tasks


def test_rows_of_processes_that_are_no_more_end_where_a_resume_begins(tmp_path):
    folder = tmp_path / "processes/1"
    with RunLog(folder) as log:
        for step in range(4):
            log.write_step({"step": step, "task": "sum", "reward": 0.5})
    with Journal(tmp_path, setup_of("sum"), Start(done=2)):
        pass
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
