#!/usr/bin/env bash
# What is missing is said in one line: no GPU, no NCCL, no CUPTI, a GPU whose memory somebody else has. From a bundle or a build folder; gpu.sh runs it, too.
#   gpu_failures.sh [FOLDER]    where esmoe is (default: this script's); skips, status 77, without a GPU
set -uo pipefail
folder=$(cd "${1:-$(dirname "$0")}" && pwd)
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ "$gpus" -lt 1 ]; then
	echo "no GPU here"
	exit 77
fi
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0
run="run -m gpt-moe-s --set network.layers=2 -M h200-x2 --experts 8 --sequences 4 --device cuda --synthetic --steps 2"

# expect NAME STATUS TEXT: what the last program left in out, err and status.
expect() {
	if [ "$status" = "$2" ] && [ "$(wc -l <err)" -eq 1 ] && grep -q "$3" err; then
		echo "ok $1: $(head -c 300 err)"
	else
		failed=1
		echo "FAILED $1: status $status for $2, stderr: $(head -c 600 err)"
	fi
}
# attempt NAME=VALUE... -- ARGUMENT...
attempt() {
	local variables=()
	while [ "$1" != -- ]; do
		variables+=("$1")
		shift
	done
	shift
	timeout 60 env "${variables[@]}" "$folder/esmoe" $run "$@" >out 2>err
	status=$?
}

mkdir none
for name in libnccl.so.2 libnccl.so libcupti.so.13 libcupti.so.12 libcupti.so; do
	echo "no library" >none/$name
done

attempt CUDA_VISIBLE_DEVICES= -- --gpus 1 -p static
expect "no GPU" 5 '^esmoe: device cuda: '
attempt LD_LIBRARY_PATH="$PWD/none:${LD_LIBRARY_PATH:-}" -- --gpus 1 -p static --trace traced
expect "no CUPTI" 0 'without CUPTI'
[ -s traced/trace.rank0.json ] && grep -q mixer_forward traced/trace.rank0.json || { failed=1 && echo "FAILED no CUPTI: no trace"; }
if [ "$gpus" -ge 2 ]; then
	attempt LD_LIBRARY_PATH="$PWD/none:${LD_LIBRARY_PATH:-}" -- --gpus 2 -p static
	expect "no NCCL" 5 'need NCCL'
fi

# GPT-MoE L takes 2.7 GiB a layer: one run takes all but about 15 GiB, the other wants 24 layers.
free=$(nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits -i 0)
"$folder/esmoe" run -m gpt-moe-l --set network.layers=$(((free / 1024 - 15) * 10 / 27)) -M h200-x2 --gpus 1 --experts 8 --sequences 1 --device cuda --synthetic \
	-p static --steps 100000 >held 2>held.err &
for _ in $(seq 300); do
	[ -s held ] && break
	sleep 0.2
done
attempt -- --gpus 1 -p static -m gpt-moe-l --set network.layers=24
expect "a GPU that is full" 5 'nvidia-smi says who has the rest'
exit $failed
