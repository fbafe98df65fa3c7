"""Compares Holistic Trace Analysis on a folder of traces with our trace info (JSON) and our spans (CSV).

Usage: hta_check.py FOLDER INFO.json SPANS.csv
HTA counts in float microseconds: sums may be off by their rounding, never by a nanosecond."""

import collections
import csv
import json
import logging
import sys
import warnings

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

from hta.trace_analysis import TraceAnalysis  # noqa: E402

folder, info_path, csv_path = sys.argv[1:]
info = json.load(open(info_path))
failures = []


def expect(what, ours, theirs, tolerance=0.0005):
    if abs(ours - theirs) > tolerance:
        failures.append(f"{what}: ours {ours}, HTA's {theirs}")


def name_of(span):
    """What a span is called in the trace file, written down here a second time."""
    collectives = {
        "counts": "ncclDevKernel_AllToAll_Counts",
        "all_to_all": "ncclDevKernel_AllToAll",
        "all_reduce": "ncclDevKernel_AllReduce",
        "reduce_scatter": "ncclDevKernel_ReduceScatter",
        "all_gather": "ncclDevKernel_AllGather",
        "upload": "Memcpy HtoD (Pinned -> Device)",
        "download": "Memcpy DtoH (Device -> Pinned)",
    }
    return collectives.get(span["stage"], f"{span['stage']}_{span['pass']}")


analysis = TraceAnalysis(trace_dir=folder)
gpus = {gpu["gpu"]: gpu for gpu in info["gpus"]}
assert len(gpus) >= 2, "two ranks at least"

breakdown = analysis.get_temporal_breakdown(visualize=False).set_index("rank")
overlap = analysis.get_comm_comp_overlap(visualize=False).set_index("rank")
for rank, gpu in gpus.items():
    row = breakdown.loc[rank]
    expect(f"rank {rank} compute", gpu["compute_ms"] * 1e3, row["compute_time(us)"], 0.01)
    expect(f"rank {rank} other", gpu["other_ms"] * 1e3, row["non_compute_time(us)"], 0.01)
    expect(f"rank {rank} idle", gpu["idle_ms"] * 1e3, row["idle_time(us)"], 0.01)
    expect(f"rank {rank} window", gpu["window_ms"] * 1e3, row["kernel_time(us)"], 0.01)
    expect(f"rank {rank} collectives under compute", gpu["collective_hidden_pct"], overlap.loc[rank, "comp_comm_overlap_pctg"], 0.0051)

sums, spans, events = collections.Counter(), 0, collections.defaultdict(list)
for span in csv.DictReader(open(csv_path)):
    if span["stream"].startswith("gpu"):
        gpu, stream = span["stream"][len("gpu") :].split()
        gpu = int(gpu)
        sums[gpu, name_of(span)] += int(span["end_ns"]) - int(span["start_ns"])
        spans += 1
        events[gpu, stream] += [(int(span["launch_ns"] or span["start_ns"]), 1), (int(span["start_ns"]), -1)]
_, kernels = analysis.get_gpu_kernel_breakdown(visualize=False, duration_ratio=1.0, num_kernels=1000, include_memory_kernels=True)
theirs = {(int(row["rank"]), row["name"]): row["sum (us)"] for _, row in kernels.iterrows()}
for key, ns in sums.items():
    expect(f"rank {key[0]} {key[1]}", ns / 1e3, theirs.pop(key, 0), 0.01)
failures += [f"HTA has {key} besides: {us} us" for key, us in theirs.items() if us > 0]

# Length of a stream's queue: launched, not yet started. Where both fall together, HTA may count either first.
STREAMS = {"compute": 1, "upload": 2, "download": 3, "collective": 4}
queues = analysis.get_queue_length_summary(ranks=sorted(gpus))["queue_length"]
for (gpu, stream), changes in events.items():
    longest = []
    for first in (-1, 1):
        length = most = 0
        for _, change in sorted(changes, key=lambda c: (c[0], c[1] * first)):
            length += change
            most = max(most, length)
        longest.append(most)
    theirs = queues.loc[(gpu, STREAMS[stream]), "max"]
    if not min(longest) <= theirs <= max(longest):
        failures.append(f"rank {gpu} {stream} longest queue: ours {longest}, HTA's {theirs}")

for failure in failures:
    print(failure)
print(f"{folder}: {len(gpus)} ranks, {spans} GPU spans, {len(sums)} names and {len(events)} queues compared")
sys.exit(1 if failures else 0)
