#!/usr/bin/python3
"""What scripts/bench measured, as lines of JSON: values of a thing, which belong together where group, name, unit and series are the same.

  figures.py idle COUNT     prints such a line: how long a process that does nothing took, so often
  figures.py table          shows lines on stdin as tables: median (least to most), and the ratio to the last series
  figures.py report DIRECTORY  writes there report.md, with plots, about the lines in DIRECTORY/NAME.ndjson and DIRECTORY/machine.json
"""

import json
import os
import subprocess
import sys
import time
from statistics import median, quantiles

IDLE = "the machine", "a process that does nothing", "µs"
# Of a quiet machine it is about a tenth.
NOISY = 0.5


def figure(group, name, unit, *values, series=""):
    values = [round(value, 3) for value in values]
    print(json.dumps({"group": group, "name": name, "unit": unit, "series": series, "values": values}, ensure_ascii=False), flush=True)


def idle(count):
    def once():
        start = time.perf_counter()
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        return (time.perf_counter() - start) * 1e6

    figure(*IDLE, *(once() for _ in range(count)))


class Figures:
    """By group, name and series: the unit, and the values."""

    def __init__(self, lines):
        self.groups = {}
        for line in map(json.loads, lines):
            series = self.groups.setdefault(line["group"], {}).setdefault((line["name"], line["unit"]), {})
            series.setdefault(line["series"], []).extend(line["values"])

    def noise(self):
        """How far the nine tenths of the idle process' times that are in the middle are apart, as a part of the median."""
        group, *thing = IDLE
        times = self.groups.pop(group)[tuple(thing)][""]
        parts = quantiles(times, n=20)
        return (parts[-1] - parts[0]) / median(times)


def number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cell(values, last):
    text = number(median(values))
    if len(values) > 1:
        text += f" ({number(min(values))} to {number(max(values))})"
    if last and last is not values and median(last):
        text += f" ×{median(values) / median(last):.2f}"
    return text


def rows(group):
    """A heading, and for each thing its name and a cell for each series."""
    series = list(dict.fromkeys(name for things in group.values() for name in things))
    yield ["", *series]
    for (name, unit), things in group.items():
        last = things.get(series[-1])
        yield [f"{name}, {unit}", *(cell(things[one], last) if one in things else "" for one in series)]


def verdict(noise):
    text = f"a process that does nothing: times apart by {noise:.0%} of the median"
    return text + ("; TOO NOISY, the figures say little" if noise > NOISY else "")


def table(figures):
    noise = figures.noise()
    for name, group in figures.groups.items():
        lines = list(rows(group))
        widths = [max(map(len, column)) for column in zip(*lines)]
        print(f"\n{name}")
        for line in lines:
            if any(line):
                print("  " + "  ".join(f"{text:<{width}}" for text, width in zip(line, widths)).rstrip())
    print(f"\n{verdict(noise)}")


def plot(file, title, bars):
    """Bars in clusters, as an SVG: bars is cluster, then series, then values. A bar is the median, its whisker least and most."""
    series = list(next(iter(bars.values())))
    lines = [
        f'"{cluster}" ' + " ".join(f"{median(of[one])} {min(of[one])} {max(of[one])}" for one in series)
        for cluster, of in bars.items()
    ]
    columns = ", ".join(
        f'$bars using {2 + 3 * i}:{3 + 3 * i}:{4 + 3 * i}:xtic(1) title "{one}"' for i, one in enumerate(series))
    script = f"""
        set terminal svg size 860,400 font "sans-serif,13" background "white"
        set output "{file}"
        set title "{title}"
        set style data histogram
        set style histogram errorbars gap 1.5
        set style fill solid 0.8
        set grid y
        set yrange [0:*]
        set key outside bottom center horizontal
        set xtics {"rotate by -25" if len(bars) > 5 else ""}
        $bars << END
%s
END
        plot {columns}
    """
    subprocess.run(["gnuplot"], input=script % "\n".join(lines), text=True, check=True)


def by_size(figures, *thing):
    return {name.removeprefix("IPv4, "): group[thing] for name, group in figures.groups.items() if name.startswith("IPv4")}


def latency(figures):
    group = next(iter(figures.groups.values()))
    return {name: things for (name, _), things in group.items() if name.startswith("latency")}


def by_program(figures):
    bars = {}
    for group, things in figures.groups.items():
        if "above" in group:
            for (name, _), of in things.items():
                bars.setdefault(name, {})[group.rsplit(", ", 1)[1]] = next(iter(of.values()))
    return bars


PLOTS = {
    "path": [
        ("connections", "New connections a second, IPv4", lambda of: by_size(of, "new connections", "1/s")),
        ("requests", "Requests a second of 50 clients on open connections, IPv4", lambda of: by_size(of, "requests of 50 clients", "1/s")),
        ("latency", "Latency in µs (sockperf, TCP over IPv4, 10 Services)", latency),
    ],
    "lb": [("programs", "ns of a program above one that does nothing", by_program)],
}

SEED = """## Beside Spiderpool's figures

Spiderpool's page on underlay CNIs and Services compares kube-proxy with Cilium in its place, which translates at the socket too.

| | latency, µs | requests a second |
|---|---|---|
| Spiderpool, with kube-proxy | 36.763 | 72254.34 |
| Spiderpool, with Cilium instead | 27.743 (×0.75) | 107066.38 (×1.48) |
| here, host path with kube-proxy (iptables) | {latency[0]:.1f} | {requests[0]:.0f} |
| here, socket path beside kube-proxy | {latency[1]:.1f} (×{ratio_latency:.2f}) | {requests[1]:.0f} (×{ratio_requests:.2f}) |

What differs, so that only ratios may be compared, and these with care: theirs are two machines of 56 CPUs with 10 Gbit/s between them; here
both nodes, client and server share one machine's CPUs and there is no wire, whose time is in both of their figures and in none of
these. Their latency is sockperf's average of 30 s, here it is the median of runs of 1 s, both by `sockperf ping-pong --tcp`. With
what they counted requests they do not say; here it is redis-benchmark's GET with 50 clients. They had kube-proxy removed for the second line;
here it runs on.

"""


def seed(path):
    group = next(iter(path.groups.values()))

    def of(*thing):
        return [median(group[thing][way]) for way in ("host path, iptables", "socket path")]

    took, answered = of("latency, 50 %", "µs"), of("requests of 50 clients", "1/s")
    return SEED.format(latency=took, requests=answered, ratio_latency=took[1] / took[0], ratio_requests=answered[1] / answered[0])


def markdown(line):
    return "| " + " | ".join(text.strip() for text in line) + " |\n"


def chapter(directory, name, figures):
    """What one benchmark found, with its plots."""
    yield f"## {name}\n\n{verdict(figures.noise())}\n\n"
    for file, title, bars in PLOTS.get(name, []):
        plot(f"{directory}/{file}.svg", title, bars(figures))
        yield f"![{title}]({file}.svg)\n\n"
    for group, things in figures.groups.items():
        heading, *lines = rows(things)
        yield f"{group}\n\n" + markdown(heading) + "|" + "---|" * len(heading) + "\n" + "".join(map(markdown, lines)) + "\n"


def report(directory):
    with open(f"{directory}/machine.json", encoding="utf-8") as file:
        machine = json.load(file)
    benchmarks = {}
    for name in ("path", "lb", "add", "routes", "scale"):
        with open(f"{directory}/{name}.ndjson", encoding="utf-8") as lines:
            benchmarks[name] = Figures(lines)
    with open(f"{directory}/report.md", "w", encoding="utf-8") as out:
        out.write("# What Underpass costs\n\nOf one machine, so that only ratios within a table count. A figure is a median, with the "
                  "least and the most, and its ratio to the last column.\n\n")
        out.writelines(f"* {name}: {value}\n" for name, value in machine.items())
        out.write("\n")
        chapters = {name: list(chapter(directory, name, figures)) for name, figures in benchmarks.items()}
        out.write(seed(benchmarks["path"]))
        for parts in chapters.values():
            out.writelines(parts)


def main(arguments):
    match arguments:
        case ["idle", count]:
            idle(int(count))
        case ["table"]:
            table(Figures(sys.stdin))
        case ["report", directory]:
            report(directory)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
