#!/usr/bin/env bash
# Runs a command on every host of a Cloud TPU slice, through gcloud, until it has come to its end.
#
#   launch/tpu_pod.sh --tpu=NAME --zone=ZONE -- rdbcl train … --distributed
#   launch/tpu_pod.sh --tpu=NAME --zone=ZONE --accelerator=v5litepod-16 \
#       --runtime=v2-alpha-tpuv5-lite --spot -- .venv/bin/rdbcl train … --distributed
#
# The first takes a slice that is there. The second asks for one, as a queued resource, waits for it,
# copies the commit that is checked out here to all of its hosts and installs it there; it makes a new
# one when the slice is preempted, and removes it at the end, whatever that is. A trainer that gets
# SIGTERM saves its state and ends with 0, and says so: the same command is then started again, which
# goes on from there. A command that fails on a slice that is whole has failed: no retry helps. One whose
# connection broke (255) may still be running there: it is started again until the run of before, which
# has the workdir, is at its end, and the slice stays when the retries are over.
#
#   --tpu=NAME, --zone=ZONE   the slice, and where it is
#   --project=PROJECT         default: gcloud's own
#   --accelerator=TYPE        makes the slice; such as v5litepod-16, v5p-32, v6e-8
#   --runtime=VERSION         its software; such as v2-alpha-tpuv5-lite, v2-alpha-tpuv5, v2-alpha-tpuv6e
#   --spot                    cheaper, and preempted when others pay more
#   --keep                    the slice that was made stays
#   --directory=DIR           of the hosts, where the command starts; default rdbcl_jax
#   --setup=COMMAND           installs there what was copied; default: uv, Python 3.12, .[tpu,gs]
#   --retries=N               starts after the first, in all; default 20
#   --poll=SECONDS            between looks at what is waited for; default 30
set -uo pipefail

say() { echo "tpu_pod.sh: $*" >&2; }
fail() { say "$1"; exit "${2:-2}"; }

tpu='' zone='' project='' accelerator='' runtime='' spot='' keep='' directory=rdbcl_jax
retries=20 poll=30
setup='python3 -m pip install --user --quiet uv && python3 -m uv venv --quiet --python 3.12 .venv'
setup+=" && python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu,gs]'"
while [ $# -gt 0 ]; do
  case $1 in
    --tpu=* | --zone=* | --project=* | --accelerator=* | --runtime=* | --directory=* | --setup=* | \
      --retries=* | --poll=*)
      name=${1%%=*} && printf -v "${name#--}" '%s' "${1#*=}" ;;
    --spot) spot=--spot ;;
    --keep) keep=yes ;;
    --) shift && break ;;
    *) fail "not understood: $1 (the command comes after --)" ;;
  esac
  shift
done
[ -n "$tpu" ] && [ -n "$zone" ] || fail '--tpu and --zone are needed, the name and zone of the slice'
[ $# -gt 0 ] || fail 'no command; it comes after --'
[ -z "$accelerator" ] || [ -n "$runtime" ] || fail "--accelerator=$accelerator needs --runtime as well"
[ -n "$accelerator" ] || [ -z "$runtime$spot$keep" ] || fail '--runtime, --spot and --keep are of a slice that is made: --accelerator is missing'
case $retries$poll in *[!0-9]*) fail "--retries=$retries and --poll=$poll are numbers" ;; esac
command -v gcloud > /dev/null || fail 'gcloud is not on the PATH: https://cloud.google.com/sdk/docs/install'

where=("--zone=$zone" ${project:+"--project=$project"})
alive=(--ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=10)
vm() { local verb=$1 && shift && gcloud compute tpus tpu-vm "$verb" "$@" "${where[@]}"; }
queue() { local verb=$1 && shift && gcloud compute tpus queued-resources "$verb" "$tpu" "${where[@]}" "$@"; }
state_of_queue() { queue describe '--format=value(state.state)' 2> /dev/null; }
state_of_slice() { # GONE where gcloud knows of none, nothing where it cannot say
  if vm describe "$tpu" '--format=value(state)' 2> "$errors"; then return; fi
  ! grep -q NOT_FOUND "$errors" || echo GONE
}

printf -v line '%q ' "$@"
printf -v line 'cd %q && %s' "$directory" "${line% }"
log=$(mktemp) && errors=$(mktemp) && made='' left=$retries command='' lost=''

stop_command() { [ -z "$command" ] || kill -- "-$command" 2> /dev/null; }

remove() {
  made='' lost=''
  queue delete --force --quiet || say "could not remove $tpu: look, it may cost money"
}
at_end() {
  local code=$?
  rm -f "$log" "$errors"
  [ -z "$made" ] || [ -n "$keep" ] || remove
  exit $code
}
trap at_end EXIT
# what runs in the foreground would be waited for first
trap 'stop_command; exit 143' TERM
trap 'stop_command; exit 130' INT

again() { # one of the retries is taken
  if [ "$left" = 0 ]; then
    [ -z "$lost" ] || { keep=yes && say "$tpu stays: its run may go on there"; }
    fail "$1; no retries are left" 1
  fi
  left=$((left - 1))
  say "$1; $left retries are left"
  sleep "$poll"
}

make_slice() {
  local state archive code
  until [ -n "$made" ]; do
    queue create "--node-id=$tpu" "--accelerator-type=$accelerator" "--runtime-version=$runtime" $spot ||
      fail "gcloud did not take the request for $tpu" 1
    made=yes
    while [ -n "$made" ]; do
      state=$(state_of_queue)
      case $state in
        ACTIVE) break ;;
        FAILED | SUSPENDING | SUSPENDED) remove && again "the request for $tpu is $state" ;;
        '') again "gcloud cannot say how the request for $tpu is" ;;
        *) sleep "$poll" ;;
      esac
    done
  done
  archive=$(mktemp -d)
  git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive/rdbcl_jax.tgz" HEAD &&
    vm scp "$archive/rdbcl_jax.tgz" "$tpu:rdbcl_jax.tgz" --worker=all &&
    vm ssh "$tpu" --worker=all "--command=$(printf 'mkdir -p %q && tar xzf rdbcl_jax.tgz -C %q && cd %q && %s' \
      "$directory" "$directory" "$directory" "$setup")"
  code=$?
  rm -rf "$archive"
  return $code
}

while true; do
  if [ -n "$accelerator" ] && [ -z "$made" ] && ! make_slice; then
    [ "$(state_of_slice)" = READY ] && fail "could not install the package on $tpu" 1
    remove
    again "$tpu was preempted while it was set up"
    continue
  fi
  set -m # in a process group of its own, of which nothing is left when it is stopped
  {
    vm ssh "$tpu" --worker=all "${alive[@]}" "--command=$line" 2>&1 | tee "$log"
    exit "${PIPESTATUS[0]}"
  } < /dev/null &
  command=$!
  set +m
  wait "$command"
  code=$? command=''
  if [ "$code" = 0 ] && ! grep -q 'stopped by SIGTERM' "$log"; then
    exit 0
  fi
  state=$(state_of_slice)
  why="$tpu is $state, and its run not at its end"
  if [ -z "$state" ]; then # which says nothing of the slice, nor of the run on it
    lost=yes why="gcloud cannot say how $tpu is"
  elif [ "$state" != READY ]; then
    [ -n "$accelerator" ] ||
      fail "$tpu is $state, and was not made here: with --accelerator and --runtime it is made again" 1
    remove
  elif [ "$code" = 255 ]; then
    lost=yes why="the connection to $tpu was lost"
  elif [ -n "$lost" ] && grep -q 'belongs to another run' "$log"; then
    why="the run on $tpu goes on from before the connection was lost"
  elif [ "$code" != 0 ] && ! grep -q 'stopped by SIGTERM' "$log"; then
    fail "the command failed on $tpu with $code" "$code"
  fi
  again "$why"
done
