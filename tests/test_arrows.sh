#!/usr/bin/env bash
# The arrows of the design: model <- traces <- sim, exec, plots <- esmoe.c. Each line of a table below is one promise about who includes what.
set -u
cd "${ESMOE_SOURCE:?the source folder}" || exit 1
failures=0

# forbid WHAT PATTERN FILE...: no line of the files matches.
forbid() {
	local what=$1 pattern=$2 found
	shift 2
	[ $# -gt 0 ] || return 0
	found=$(grep -nE "$pattern" "$@" /dev/null)
	[ -z "$found" ] && return 0
	failures=$((failures + 1))
	printf 'FAILED: %s\n%s\n' "$what" "$found"
}

# sources ROOM...: their C files and headers.
sources() {
	local room
	for room in "$@"; do
		[ ! -d "$room" ] || find "$room" -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh'
	done
}

# An include may name another room by its folder or by a step up.
rooms() { printf '#[[:space:]]*include[[:space:]]*"(\.\./)*(%s)/' "$1"; }

mapfile -t model < <(sources model)
mapfile -t traces < <(sources traces)
mapfile -t sim < <(sources sim)
mapfile -t exec < <(sources exec)
mapfile -t plots < <(sources plots)
[ ${#model[@]} -gt 10 ] && [ ${#sim[@]} -gt 3 ] || { echo "FAILED: the sources are not where this test looks"; exit 1; }

forbid "model includes no other room" "$(rooms 'traces|sim|exec|plots')" "${model[@]}"
forbid "traces includes model only" "$(rooms 'sim|exec|plots')" "${traces[@]}"
forbid "sim includes model and traces only" "$(rooms 'exec|plots')" "${sim[@]}"
forbid "exec includes model and traces only" "$(rooms 'sim|plots')" "${exec[@]}"
forbid "plots includes model and traces only" "$(rooms 'sim|exec')" "${plots[@]}"
forbid "the door includes model only" "$(rooms 'traces|sim|exec|plots')" esmoe.c
forbid "only exec includes CUDA headers" '#[[:space:]]*include[[:space:]]*[<"](cuda|cublas|nccl|nvtx|cupti)' "${model[@]}" "${traces[@]}" "${sim[@]}" "${plots[@]}" esmoe.c
forbid "model reads no clock" '\b(clock_gettime|gettimeofday|g_get_monotonic_time|g_get_real_time|g_date_time_new_now|time|clock)[[:space:]]*\(' "${model[@]}"
mapfile -t silent < <(printf '%s\n' "${model[@]}" | grep -v '/cmd_')
forbid "model prints nothing" '\b(printf|fprintf|vprintf|puts|fputs|putchar|perror|g_print|g_printerr|g_message|g_warning)[[:space:]]*\(' "${silent[@]}"
forbid "no #if names a backend or device" '#[[:space:]]*(if|ifdef|ifndef|elif).*\b\w*(SIM|EXEC|CUDA|NVCC|NCCL|CUBLAS|HOST_DEVICE)\w*' "${model[@]}" "${traces[@]}" "${sim[@]}" \
	"${plots[@]}" esmoe.c

[ "$failures" -eq 0 ]
