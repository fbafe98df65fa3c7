#!/usr/bin/env bash
# Two processes with a GPU each against one process with both, and what happens when one of them dies: a node with two GPUs, from a bundle or a build
# folder. gpu.sh runs it, too.
#   gpu_ranks.sh [FOLDER]    where esmoe is (default: this script's); skips, status 77, where there are fewer GPUs
set -uo pipefail
folder=$(cd "${1:-$(dirname "$0")}" && pwd)
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ "$gpus" -lt 2 ]; then
	echo "$gpus GPUs here; two are needed"
	exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0
# the gate's own loads would tell more and more about the order of sums
run="run -m gpt-moe-s --routing uniform --set network.layers=4 -M h200-x2 --experts 8 --sequences 8 --device cuda --synthetic --set machine.gpus_per_node=1 --set pcie.gpus_per_root=1 --set policy.all_to_all=linear --set ssd.gb=60 --set ssd.read_gbps=2 --set ssd.write_gbps=1 --set ssd.mixed_gbps=2"

# start RANK ARGUMENT...: as torchrun would.
start() {
	local rank=$1
	shift
	RANK=$rank WORLD_SIZE=2 LOCAL_RANK=$rank "$folder/esmoe" $run --rendezvous meet "$@" >out.$rank 2>err.$rank &
	pid[rank]=$!
}

complain() {
	failed=1
	echo "FAILED $*"
	head -c 400 err.0 err.1
}

# The losses of the last step, the largest difference of any step, and how long the later steps took.
compare() {
	paste -d, "$1/losses.csv" "$2/losses.csv" | awk -F, -v name="$3" '
		NR > 1 { d = $2 - $6; if (d < 0) d = -d; if (d > most) most = d; loss = $2 }
		NR > 2 { a += $4; b += $8; n++ }
		END { printf "ok %s: loss %.5f, largest difference %.6f; one process %.1f ms a step, two %.1f ms\n", name, loss, most, a / n, b / n; exit most > 0.0002 * loss }'
}

for policy in "static" "es-moe --set policy.expert_home=dram" "es-moe --set policy.expert_home=ssd"; do
	name=${policy##*=}
	rm -rf one two
	steps=20
	[ "$name" != ssd ] || steps=3
	"$folder/esmoe" $run -p $policy --steps $steps --trace one >out.one 2>err.0 || complain "$policy in one process"
	start 0 -p $policy --steps $steps --trace two
	start 1 -p $policy --steps $steps --trace two
	wait "${pid[0]}" || complain "$policy, rank 0 of two"
	wait "${pid[1]}" || complain "$policy, rank 1 of two"
	compare one two "$name" || complain "$policy: the losses differ"
	"$folder/esmoe" validate two >out.validate 2>&1 || complain "$policy: the folder cannot be validated: $(head -c 300 out.validate)"
done

for dies in 1 0; do
	rm -rf killed
	start 0 -p es-moe --set policy.expert_home=dram --steps 1000000 --trace killed
	start 1 -p es-moe --set policy.expert_home=dram --steps 1000000 --trace killed
	for _ in $(seq 1200); do
		[ "$(grep -c '' killed/losses.csv 2>/dev/null)" -ge 4 ] 2>/dev/null && break
		sleep 0.05
	done
	kill -9 "${pid[dies]}"
	wait "${pid[dies]}" 2>/dev/null
	since=$SECONDS
	for _ in $(seq 350); do
		kill -0 "${pid[1 - dies]}" 2>/dev/null || break
		sleep 0.1
	done
	kill -9 "${pid[1 - dies]}" 2>/dev/null && complain "rank $((1 - dies)) still runs 35 s after rank $dies was killed"
	wait "${pid[1 - dies]}" 2>/dev/null
	status=$?
	if [ $status -eq 5 ] && [ $((SECONDS - since)) -le 30 ] && grep -q "^esmoe: rank $dies (.*died" err.$((1 - dies)) && [ -s killed/trace.rank$((1 - dies)).json ]; then
		echo "ok rank $dies was killed: after $((SECONDS - since)) s $(cat err.$((1 - dies)))"
	else
		complain "rank $dies was killed: status $status after $((SECONDS - since)) s: $(cat err.$((1 - dies)))"
	fi
done
exit $failed
