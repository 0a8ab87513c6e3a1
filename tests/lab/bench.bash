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
