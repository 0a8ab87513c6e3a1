# What the benchmarks share beside the lab. What they measure they print as lines of JSON, for lab/figures.py to show.

# shellcheck source=lab.bash
source "$(dirname "${BASH_SOURCE[0]}")/lab.bash"

# figure GROUP NAME UNIT SERIES VALUE...: measured values of one thing; all that have the same four words belong together.
figure() {
  jq -nc --arg group "$1" --arg name "$2" --arg unit "$3" --arg series "$4" \
    '{$group, $name, $unit, $series, values: ($ARGS.positional | map(tonumber))}' --args "${@:5}"
}

# progress TEXT...: what is being measured.
progress() {
  printf 'bench: %s\n' "$*" >&2
}

# bench_down: takes the lab away, and waits until the kernel has done its part, which what is measured next would feel.
bench_down() {
  lab_down
  lab_until 60 bench_is_down || progress 'the kernel still takes network namespaces away'
}

# A worker's name says what it is at, after a plus sign (wq_worker_comm()).
bench_is_down() {
  ! grep -qs '+netns$' /proc/[0-9]*/comm
}
