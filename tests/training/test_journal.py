"""What a run says of itself."""

import types

from rdbcl_jax.config import RunConfig
from rdbcl_jax.results import RunResults, read_results, write_results
from rdbcl_jax.sharding import make_mesh
from rdbcl_jax.training.journal import Journal
from rdbcl_jax.training.resume import Start


def test_times_are_those_of_earlier_calls_too(tmp_path):
    write_results(tmp_path, RunResults(timing={"base": 3.0, "learning": 5.0, "total": 9.0}))
    empty = dict(tasks=[], held_out=[], evaluated=[], replaced=[], notes=[])
    setup = types.SimpleNamespace(config=RunConfig(), mesh=make_mesh(), **empty)
    journal = Journal(tmp_path, setup, Start(done=1, results=True))
    with journal, journal.timed("learning"):
        pass
    journal.write_results("running")
    timing = read_results(tmp_path).timing
    assert timing["base"] == 3.0 and timing["learning"] > 5.0 and timing["total"] > 9.0
