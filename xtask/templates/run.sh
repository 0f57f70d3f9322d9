#!/usr/bin/env bash
# Runs what `cargo xtask bundle` gathered, on a machine with an NVIDIA driver and nothing else.
set -uo pipefail

usage="usage: run.sh tests [FILTER…] | benches [FILTER…] | probes ARGS… | differential ARGS… | wootz ARGS…
  tests     every test; without a GPU they fail, unless GPU=optional is set
  benches   kernel timings
  probes    what single instructions do on this GPU: run.sh probes --record DIR
  differential  every kernel on this GPU and emulated: run.sh differential --cases 20 --out DIR
  wootz     the command line, for example: run.sh wootz chat --ask 'What is 12 plus 7?'"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program="$here/wootz-all"
export WOOTZ_GOLDENS="${WOOTZ_GOLDENS:-$here/tests/goldens}"

# Some ways to copy a folder lose the executable bit, and the copy may be read-only.
if [ ! -x "$program" ] && ! chmod +x "$program" 2>/dev/null; then
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    cp "$program" "$copy/" && program="$copy/wootz-all" && chmod +x "$program" || exit 1
fi

case "${1:-}" in
    tests | benches)
        what=$1
        shift
        export GPU="${GPU:-required}"
        gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
        start=$SECONDS
        # criterion reads the process's own arguments, so that its role is the name it is called by.
        if [ "$what" = benches ]; then (exec -a benches "$program" --bench "$@"); else "$program" "$@"; fi
        code=$?
        [ $code -eq 0 ] && verdict=ok || verdict="FAILED (exit code $code)"
        echo "run.sh $what: $verdict, $((SECONDS - start)) s, GPU: ${gpu:-none}"
        exit $code
        ;;
    probes | differential)
        role=wootz-$1
        shift
        "$program" "$role" "$@"
        exit $?
        ;;
    wootz)
        shift
        # The executable's first argument picks its role. Not exec: the copy above must outlive the program.
        "$program" wootz-cli "$@"
        exit $?
        ;;
    *)
        echo "$usage" >&2
        exit 2
        ;;
esac
