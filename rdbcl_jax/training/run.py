"""The outer loop: freeze the reference, learn a task, evaluate on all tasks, checkpoint, go on."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.check import SIZES
from rdbcl_jax.data.indexed import Records
from rdbcl_jax.data.records import Record
from rdbcl_jax.data.tasks import EVALUATED, SPLITS
from rdbcl_jax.distributed import meet, most_anywhere, on_main
from rdbcl_jax.evaluation import Answer, Evaluation, evaluate
from rdbcl_jax.finite import differ
from rdbcl_jax.lock import Held, RemoteLock, WorkdirLock, is_seen
from rdbcl_jax.methods import Method
from rdbcl_jax.methods.classic import EWCOptions
from rdbcl_jax.models import partition
from rdbcl_jax.models.averages import averaged
from rdbcl_jax.models.partition import Trained
from rdbcl_jax.policy import Policy, allowed_sizes, load_policy
from rdbcl_jax.remote import Store
from rdbcl_jax.results import RunResults
from rdbcl_jax.rewards.functions import FunctionFailed
from rdbcl_jax.rewards.scoring import judge
from rdbcl_jax.rollout.sampling import sampling_of
from rdbcl_jax.sharding import abstract, held_whole
from rdbcl_jax.toy.base import make_base
from rdbcl_jax.toy.options import BaseOptions
from rdbcl_jax.training import rng
from rdbcl_jax.training.ahead import Ahead
from rdbcl_jax.training.collect import write_right_responses
from rdbcl_jax.training.disk import check_room, parts_of
from rdbcl_jax.training.examples import make_examples
from rdbcl_jax.training.experience import own_batches
from rdbcl_jax.training.fisher import estimate_fisher
from rdbcl_jax.training.identity import keep_base
from rdbcl_jax.training.journal import Journal
from rdbcl_jax.training.learner import Learner, make_learner
from rdbcl_jax.training.memory import phase
from rdbcl_jax.training.programs import Programs
from rdbcl_jax.training.rehearsal import old_prompts
from rdbcl_jax.training.resume import Start, find_start, forget_beyond
from rdbcl_jax.training.setup import Setup, prepare
from rdbcl_jax.training.stage import Anchors, dtype_of_frozen, make_stage
from rdbcl_jax.training.state import TaskState, restore_state
from rdbcl_jax.training.stop import Stop, Stopped
from rdbcl_jax.training.surveys import filtered
from rdbcl_jax.training.task import learn_task

_AT_ONCE = 1024  # demonstrations that are tokenized


def train(config: RunConfig | Mapping[str, Any], workdir: str | pathlib.Path) -> RunResults:
    """Runs the whole sequence, or what is left of it, and returns the content of results.json.

    JAX's settings stay those of the caller. The command line keeps compiled programs for later
    runs; `rdbcl_jax.programs.keep()`, called before, does the same here.
    """
    with Store(workdir) as store, failures_logged(store.local):
        # ------------------------------------------------------------ all checked, nothing made
        setup = prepare(RunConfig.of(config))
        _check_store(store, setup.config)
        with one_run(store) as still_mine, Stop() as stop:

            def first() -> None:
                still_mine()
                store.push()

            kept = setup.config.checkpoint.to_dict()
            checkpoints = Checkpoints(store.name, **kept, first=first)
            start = find_start(store.local, setup, checkpoints)
            with (
                _ending_together(),
                Journal(store.local, setup, start, store.name) as journal,
                checkpoints,
                contextlib.closing(Ahead()) as ahead,
            ):
                return _train(setup, store, checkpoints, start, journal, stop, ahead)


def _train(
    setup: Setup,
    store: Store,
    checkpoints: Checkpoints,
    begin: Start,
    journal: Journal,
    stop: Stop,
    ahead: Ahead,
) -> RunResults:
    method, tasks, steps = setup.method, setup.tasks, setup.config.training.steps
    done, workdir = begin.done, store.local

    if setup.left_out:
        journal.left_out(setup.left_out)
    # ---------------------------------------------------------------- the base policy
    with stop.at_once("while the base was made, which begins anew"):
        policy, base = _load_base(setup, workdir, journal, stop)
    like = abstract(base)
    learner = make_learner(setup.config, policy, like, method, setup.rewards, ahead)
    _compile_ahead(setup, learner, done)
    if whole := held_whole(policy.whole(like), policy.model.param_axes, setup.mesh):
        journal.progress.message(f"note: {whole}: held whole on each of its devices")
    parts = parts_of(setup.config, method, learner, like, done, len(checkpoints.steps()))
    if room := check_room(store, [*parts]):
        journal.progress.message(f"note: {room}")
    if done:
        journal.progress.message(f"resuming after step {done} of {steps * len(tasks)}")

    # ---------------------------------------------------------------- where an earlier call stopped
    first = done // steps  # the task to go on with
    anchors = Anchors.of_base(base, method.reference)
    del base  # held as long as it is the policy from before the task, or the reference
    for row in range(first + 1):
        if row in _rows_to_read(journal.matrix_rows, first, method):
            anchors = _read_policy(setup, checkpoints, like, row, anchors)
        _evaluate(setup, policy, anchors.previous, journal, stop, row=row)
    if first and method.consolidation:
        anchors = _read_fisher(setup, checkpoints, like, first, anchors)
    if method.responses == "none":
        journal.repeat_first_row()
        return journal.finish()

    # ---------------------------------------------------------------- task by task
    memory = None
    if first and method.tracker and method.tracker.carried:
        memory = checkpoints.restore_memory(first, method.tracker.blank(1))
    for k in range(first, len(tasks)):
        own = done - k * steps if k == first else 0
        anchors, learning = _parted(setup, policy, anchors)
        old = old_prompts(learner, tasks, k, anchors.previous, journal.progress.message)
        stage = make_stage(method, tasks, k, anchors, old)
        if own:
            del learning
            state = _read_state(setup, checkpoints, done, learner.blank(stage, memory))
        else:
            state = learner.start(stage, learning, memory)
            with journal.timed("learning"):
                say = journal.progress.message
                state = filtered(learner, stage, state, k * steps, say)
        if k == first:
            forget_beyond(checkpoints, begin, steps)
        journal.progress.start_task(k, step=own)
        with journal.timed("learning"):
            state, last = learn_task(
                learner,
                stage,
                state,
                start=own,
                first_step=k * steps,
                report=functools.partial(journal.step, k),
                save=functools.partial(_save, checkpoints, k * steps),
                probe=functools.partial(_probe, setup, policy),
                asked=stop.asked,
            )
        learned = state.train.params
        if method.tracker and method.tracker.carried:
            memory = state.tracker
            checkpoints.save_memory(k + 1, memory)
        del state, stage  # neither moments nor what was frozen for this task are needed any more
        if method.merge:
            learned = averaged(anchors.previous, learned, method.merge)
        journal.learned(k, differ(learned, anchors.previous))

        # ------------------------------------------------------------ what the task leaves
        if last:
            examples = make_examples(learner, last, learned, anchors.previous)
            journal.examples(k, last.index, examples)
        if method.consolidation:
            anchors = _consolidate(learner, setup, k, learned, anchors, journal)
            checkpoints.save_fisher(k + 1, anchors.fisher)
        if setup.config.training.collect:
            _collect(learner, setup, k, learned, workdir, journal)
        anchors = anchors.after(learned, ema_decay=setup.config.kl.ema_decay)
        with journal.timed("checkpoints"):
            checkpoints.save_task(k + 1, learned)
        stop.check(f"after task {k + 1}, which is saved")
        _evaluate(setup, policy, learned, journal, stop, row=k + 1)
    checkpoints.wait()  # before anything says that the run is done
    return journal.finish()


# ------------------------------------------------------------------------------ its phases


def _check_store(store: Store, config: RunConfig) -> None:
    """Raises ValueError for what cannot be on gs://."""
    if store.there is not None and not config.model.path and jax.process_count() > 1:
        raise ValueError(
            f"{store.name}: the base that a run makes goes through files that all its processes "
            "see, which gs:// has none of; make it first, by one process, and set model.path"
        )


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """Processes wait for the main one, which has states to compare and to name whole: once one of
    them is gone, JAX gives the others five minutes, and kills them."""
    try:
        yield
    except Stopped as stopped:
        if not stopped.at_once:  # all of them stop after one step
            meet("stopped")
        raise
    meet("at the end")


@contextlib.contextmanager
def one_run(store: Store) -> Iterator[Callable[[], None]]:
    """The workdir is this run's alone; of several processes the main one holds it for all. What is
    given raises Held where that has come to an end, as it can on gs://: a save asks."""
    lock: Any = (
        WorkdirLock(store.local) if store.there is None else RemoteLock(store.there, store.local)
    )
    with contextlib.ExitStack() as stack:

        def take() -> dict[str, Any]:
            stack.enter_context(lock)
            return lock.owner

        owner = on_main(take)
        if store.there is None:
            _check_shared(store.local, owner)
        store.pull()
        stack.callback(store.push)  # before the lock is given back
        store.keep_up()
        on_main(lambda: _check_folders(store.local))
        remote = jax.process_index() == 0 and isinstance(lock, RemoteLock)
        try:
            yield lock.check_mine if remote else lambda: None
        except Held:
            store.let_go()
            raise


def _check_shared(workdir: pathlib.Path, owner: dict[str, Any], seconds: float = 60.0) -> None:
    """Raises ValueError, in all processes, where one does not see what the main one writes there:
    its states would be on several disks, none of them whole."""
    blind = jax.process_index() > 0 and not is_seen(workdir, owner, seconds)
    if process := most_anywhere(jax.process_index() if blind else 0):
        raise ValueError(
            f"{workdir}: process {process} of {jax.process_count()} does not find there what "
            f"process 0, on {owner['host']}, has written; expected a folder that all hosts share "
            "(a network file system), or gs://"
        )


def _check_folders(workdir: pathlib.Path) -> None:
    """Raises OSError where a folder of the run could not be written to, which would show only when
    there is something to lose."""
    for path in (workdir / name for name in ("checkpoints", "samples", "rollouts", "tb", "base")):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file, expected a directory", str(path))
        if path.exists() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission to write there", str(path))


@contextlib.contextmanager
def failures_logged(workdir: pathlib.Path) -> Iterator[None]:
    """A function of the user's that raises ends the run in one line; the trace goes to a file."""
    try:
        yield
    except FunctionFailed as error:
        workdir.mkdir(parents=True, exist_ok=True)
        file = workdir / "errors.log"
        with file.open("a") as log:
            log.write("".join([time.strftime("%F %T\n"), *traceback.format_exception(error), "\n"]))
        raise FunctionFailed(
            f"{error}; the trace is in {file}, and the same command goes on from what is saved"
        ) from error


@phase("loading")
def _load_base(
    setup: Setup, workdir: pathlib.Path, journal: Journal, stop: Stop
) -> tuple[Policy, Trained]:
    """The base policy, read, or made first; and its parameters that learn."""
    config = setup.config
    if not config.model.path:
        total = config.section(BaseOptions).steps

        def on_step(step: int, loss: float) -> None:
            stop.check("while the base was made, which begins anew")  # all are at this step
            if step % 50 == 0 or step == total - 1:
                journal.progress.phase(f"SFT of the base: step {step}/{total}, loss {loss:.3f}")

        with journal.timed("base"):
            journal.progress.phase("making the base model")
            path = make_base(config, workdir / "base", setup.mesh, on_step)
        on_main(lambda: keep_base(workdir, path, config.checkpoint.verify))
        # the run's own config keeps its empty path: where the workdir lies is not a setting
        config = config.changed({"model.path": str(path)})
    policy, base = load_policy(config, setup.mesh)
    for task in setup.evaluated:
        for split in SPLITS:
            if not isinstance(records := getattr(task, split), Records):  # those were looked at
                policy.encoder.check(records)
    for records, texts in setup.demonstrations:  # too long, or of words it has no token for
        for start in range(0, len(texts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            policy.encoder.encode_responses(texts[part], records[part])
    return policy, base


def _compile_ahead(setup: Setup, learner: Learner, done: int) -> None:
    """Begins to compile what the next step runs."""
    config, steps = setup.config, setup.config.training.steps
    task, own = divmod(done, steps)
    if task == len(setup.tasks):
        return
    records: list[Record] = []
    if any(len(allowed_sizes(config, name)) != 1 for name in SIZES):  # they say which is taken
        train = setup.tasks[task].train
        records = [train[int(i)] for i in own_batches(config, len(train), task * steps)[own]]
    for program in Programs(learner, records).of_a_step():
        learner.ahead.begin(program.name, program.lowered)


def _rows_to_read(there: int, first: int, method: Method) -> range | tuple[int, ...]:
    """After which tasks the policies are read again: those whose rows are lost, and the last; an
    average needs all of them. The base is there."""
    if method.reference == "ema":
        return range(1, first + 1)
    return (*range(max(there, 1), first), *[first] * (first > 0))


@phase("boundary")
def _read_policy(
    setup: Setup, checkpoints: Checkpoints, like: Trained, task: int, anchors: Anchors
) -> Anchors:
    policy = checkpoints.restore_task(task, like)
    return anchors.after(policy, ema_decay=setup.config.kl.ema_decay)


@phase("boundary")
def _read_fisher(
    setup: Setup, checkpoints: Checkpoints, like: Trained, tasks: int, anchors: Anchors
) -> Anchors:
    like = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), like
    )
    return dataclasses.replace(anchors, fisher=checkpoints.restore_fisher(tasks, like))


@phase("boundary")
def _read_state(setup: Setup, checkpoints: Checkpoints, done: int, like: TaskState) -> TaskState:
    return restore_state(checkpoints, done, like)


@phase("boundary")
def _parted(setup: Setup, policy: Policy, anchors: Anchors) -> tuple[Anchors, Trained]:
    """The anchors with a copy of the parameters from before the task, which stay as they are; and
    those, to learn on."""
    stacks, dtype = policy.model.param_axes.stacks, dtype_of_frozen(setup.config, setup.method)

    def held(params: Trained) -> Trained:
        return partition.read_in(params, stacks, dtype)

    return anchors.frozen(held), anchors.previous


@phase("evaluation")
def _evaluate(
    setup: Setup, policy: Policy, params: Trained, journal: Journal, stop: Stop, *, row: int
) -> None:
    """A row of every split's accuracy matrix, unless it is there from before a resume."""
    if journal.matrix_rows > row:
        return
    tasks = setup.evaluated
    journal.progress.phase(f"evaluating all {len(tasks)} tasks")
    places = [(split, task) for split in EVALUATED for task in tasks]
    records = [getattr(task, split) for split, task in places]
    answers: list[dict[str, Any]] = []

    def keep(index: int, answer: Answer) -> None:
        split, task = places[index]
        answers.append({"split": split, "task": task.name, **dataclasses.asdict(answer)})

    with journal.timed("evaluation"), stop.at_once("while it evaluated"):
        found = evaluate(policy, params, records, setup.config, keep)
    journal.answers(row, answers)
    count = len(tasks)
    parts = [found.part(i * count, (i + 1) * count) for i in range(len(EVALUATED))]
    journal.add_row(dict(zip(EVALUATED, parts, strict=True)))
    if row < len(setup.tasks):
        stop.check(f"after {row} tasks, which are saved")


def _save(checkpoints: Checkpoints, before: int, done: int, state: TaskState) -> None:
    """The state after `done` steps of a task that started after `before` of the run."""
    checkpoints.save_step(before + done, state)


def _probe(setup: Setup, policy: Policy, params: Trained) -> dict[str, float]:
    """Validation accuracy on every task, as metrics of a step."""
    records = [task.validation for task in setup.evaluated]
    found: Evaluation = evaluate(policy, params, records, setup.config)
    pairs = zip(setup.evaluated, found.accuracy, strict=True)
    return {f"eval/{task.name}/accuracy": value for task, value in pairs}


@phase("boundary")
def _consolidate(
    learner: Learner, setup: Setup, k: int, learned: Trained, anchors: Anchors, journal: Journal
) -> Anchors:
    """EWC: adds what mattered to task k to what mattered before it."""
    options, config = setup.config.section(EWCOptions), setup.config
    with journal.timed("learning"):
        found = estimate_fisher(
            learner.policy,
            learned,
            setup.tasks[k].train[: options.sequences],
            sampling_of(learner.policy, config.rollout),
            rng.of_fisher(config.seed, k),
            batch_size=config.evaluation.batch_size,
            chunk_size=config.training.chunk_size,
        )
    if anchors.fisher is not None:
        found = jax.tree.map(_decayed(options.decay), found, anchors.fisher)
    return dataclasses.replace(anchors, fisher=found)


def _decayed(decay: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """new + decay · old, in the place of the new."""
    return jax.jit(lambda new, old: decay * old + new, donate_argnums=0)


@phase("sampling")
def _collect(
    learner: Learner,
    setup: Setup,
    k: int,
    learned: Trained,
    workdir: pathlib.Path,
    journal: Journal,
) -> None:
    """Right responses to the task just learned, for `rft_sft`."""
    rows, task = learner.policy.rows, setup.tasks[k]
    part = f"-{rows.group:05}-of-{rows.groups:05}" if rows.groups > 1 else ""
    with journal.timed("collecting"):
        journal.progress.phase(f"collecting right responses to {task.name}")
        write_right_responses(
            workdir / "rollouts" / f"{task.name}{part}.parquet",
            learner.policy,
            learned,
            task.train,
            judge,
            learner.sampling,
            rng.of_collected(setup.config.seed, k),
            batch_size=setup.config.evaluation.batch_size,
            samples=setup.config.training.collect,
        )
