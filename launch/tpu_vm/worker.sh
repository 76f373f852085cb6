#!/usr/bin/env bash
# What launch/tpu_vm/pretrain.py has each machine of a slice do.
#
#   worker.sh install           an environment with the tested versions and jax for TPUs, unless there is one
#   worker.sh start ARGUMENT…   launch/local.py with these arguments, in the background, unless it runs already
#   worker.sh running           by its exit status: 0 it runs, 10 it has ended well, 11 neither
#   worker.sh follow [LINES]    its output after the first so many lines, each with its number ("17| ..."), and "ended STATUS"
#   worker.sh stop              ends it with a checkpoint
#
# Output and exit status lie in ~/realm_jax_launcher. REALM_JAX_PYTHON names a Python that has all packages: nothing is
# installed then.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
state=$HOME/realm_jax_launcher
log=$state/output.log pid=$state/pid status=$state/status
python=${REALM_JAX_PYTHON:-$checkout/.venv-tpu/bin/python}
STOP_SECS=90 # the launcher's own patience with its jobs is 60

running() { [ -f "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; }

has_python() { # as the Makefile looks for one
    local one
    for one in python3.13 python3.12 python3.11; do
        if "$one" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[3] != "final")' 2>/dev/null; then return 0; fi
    done
    return 1
}

apt() { # a fresh machine may still be updating itself: wait for its lock
    sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

add_python() { # the newest that apt has and that is no pre-release
    local version candidate
    for version in 3.13 3.12 3.11; do
        candidate=$(apt-cache policy "python$version-venv" 2>/dev/null | sed -n 's/^ *Candidate: *//p')
        case $candidate in '' | '(none)' | *~alpha* | *~beta* | *~rc* | *~a[0-9]* | *~b[0-9]*) continue ;; esac
        apt install -y "python$version" "python$version-venv" && has_python && return 0
    done
    return 1
}

install() {
    [ -z "${REALM_JAX_PYTHON:-}" ] || return 0
    if ! has_python || ! command -v make >/dev/null; then
        apt update
        apt install -y make
    fi
    # Ubuntu 22.04, which Google's images for TPUs are made of, has Python 3.10 and a pre-release of 3.11
    if ! has_python && ! add_python; then
        apt install -y software-properties-common
        sudo add-apt-repository -y ppa:deadsnakes/ppa >/dev/null
        apt update
        if ! add_python; then
            echo "neither apt nor ppa:deadsnakes/ppa has a Python 3.11, 3.12 or 3.13; install one, with its venv" >&2
            return 1
        fi
    fi
    cd "$checkout"
    # the environment depends on these files alone: a newer checkout with the same ones keeps it
    local wanted known=.venv-tpu/.made_of
    wanted=$(cat setup.py constraints/*.txt | sha256sum)
    if [ -f .venv-tpu/.installed ] && [ "$wanted" = "$(cat $known 2>/dev/null)" ]; then
        touch .venv-tpu/.installed
    else
        rm -rf .venv-tpu
    fi
    make .venv-tpu/.installed
    echo "$wanted" >$known
}

start() {
    mkdir -p "$state"
    exec 9>"$state/lock" # somebody else may start it at the same time
    flock 9
    if running; then
        echo "already running, process $(cat "$pid"); stop it first to change its settings"
        return
    fi
    rm -f "$status" "$pid"
    : >"$log"
    # libtpu's compiler needs larger stacks than it gives itself (docs/tpu.md)
    LIBTPU_INIT_ARGS=${LIBTPU_INIT_ARGS:---fibers_default_thread_stack_size=2097152} PYTHONUNBUFFERED=1 \
        setsid nohup bash -c '"$@" & echo $! >"$PID.new"; mv "$PID.new" "$PID"; wait $!; echo $? >"$STATUS.new"; mv "$STATUS.new" "$STATUS"' \
        - env "$python" "$checkout/launch/local.py" "$@" >>"$log" 2>&1 </dev/null 9>&- &
    for ((looks = 0; looks < 100; looks++)); do
        [ ! -f "$pid" ] || break
        sleep 0.1
    done
    if [ ! -f "$pid" ]; then
        echo "it did not start within 10 s; $log:" >&2
        tail -n 20 "$log" >&2
        return 1
    fi
    echo "started, process $(cat "$pid"); output in $log"
}

follow() {
    if [ ! -f "$log" ]; then
        echo "nothing was started here" >&2
        echo "ended 3"
        return 3
    fi
    # Numbered, since gcloud repeats this very command when the connection breaks: the reader drops what it has seen.
    tail -n +1 -f "$log" | sed -u = | sed -u 'N;s/\n/| /' | sed -u "$((${1:-0} + 1)),\$!d" &
    local tailing=$!
    while running; do
        kill -0 "$tailing" 2>/dev/null || exit 255 # nobody reads any more
        sleep 0.5
    done
    for ((looks = 0; looks < 50; looks++)); do # its status, which is written when it has ended
        [ ! -f "$status" ] || break
        sleep 0.2
    done
    sleep 0.5 # what was written last
    pkill -P $$ tail 2>/dev/null || true
    wait "$tailing" 2>/dev/null || true
    local ended
    ended=$(cat "$status" 2>/dev/null || echo 137) # none is left by one that was killed
    echo "ended $ended"
    return "$ended"
}

stop() {
    if ! running; then
        echo "nothing is running"
        return
    fi
    local process
    process=$(cat "$pid")
    kill -TERM "$process"
    for ((looks = 0; looks < 5 * STOP_SECS; looks++)); do
        kill -0 "$process" 2>/dev/null || { echo "stopped"; return; }
        sleep 0.2
    done
    kill -KILL "$process"
    echo "killed: it had not ended after $STOP_SECS s"
}

export PID=$pid STATUS=$status
case ${1:-} in
    install | start | follow | stop) "$@" ;;
    running)
        if running; then exit 0; fi
        if [ "$(cat "$status" 2>/dev/null)" = 0 ]; then exit 10; fi
        exit 11
        ;;
    *)
        sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
