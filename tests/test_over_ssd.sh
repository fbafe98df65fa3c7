#!/usr/bin/env bash
# Experts over the SSD through frames: whichever blocks the cache keeps and however far launches run ahead, the losses are those of experts at home in
# DRAM, bit for bit; DRAM takes what the plan says. The narrowest cache holds one block.
. "$(dirname "$0")/harness.sh"

run="run -m tiny-moe -M host --synthetic --seq-len 16 --sequences 4 --seed 7 --steps 6 --set network.layers=3 --set network.d_model=16 \
	--set network.heads=2 --set network.d_ff=32 --set policy.gradient_bytes=4"
same() { cmp -s <(cut -d, -f1,2 "$1/losses.csv") <(cut -d, -f1,2 "$2/losses.csv"); }
reads() { grep -o '"name":"ssd_read_update"' "$1/trace.host.json" | wc -l; }

# The pinned bytes of a run beside its frames, from one whose frames hold all: 3 x 8 experts of 5 frames of 4 KiB.
beside() {
	expect 0 $run -p es-moe --set policy.expert_home=ssd "$@" --trace beside
	echo $(($(tail -1 beside/memory.csv | cut -d, -f6) - 3 * 8 * 5 * 4096))
}
# GiB of DRAM with room for so many frames.
dram() { awk -v bytes="$1" -v frames="$2" 'BEGIN { printf "%.9f", 4 + (bytes + 4096 * frames + 2048) / 1073741824 }'; }
ahead="--set policy.update_order=next-forward --set host.adam_gparams_per_s=0.001"

# with KIND OPTION...: home dram, then narrower and narrower caches; `behind`: frames for gradients that wait for their update
with() {
	local name=$1 behind=$2 own frames cache sums=0
	shift 2
	own=$(beside "$@")
	[[ " $* " != *" --microbatches 2 "* ]] || sums=24 # of 1024 fp32 numbers each, not pinned
	expect 0 $run -p es-moe --set policy.expert_home=dram "$@" --trace "$name"
	for frames in 3 4 7 12 40; do
		for cache in lru belady; do
			expect 0 $run -p es-moe --set policy.expert_home=ssd "$@" --set policy.ssd_cache=$cache \
				--set host.dram_gib="$(dram "$own" $((frames + behind + sums)))" --trace narrow
			check "$name, $cache: $frames frames, the losses of experts in DRAM" same "$name" narrow
			check "$name, $cache: $frames frames are pinned, and $behind for gradients" \
				test "$(tail -1 narrow/memory.csv | cut -d, -f6)" -eq $((own + 4096 * (frames + behind)))
		done
	done
	# a step updates 24 states of 3 frames; those that 40 frames do not hold at its start are read
	check "$name: states come and go" test "$(reads narrow)" -ge $(((24 * 3 - 40 + 2) / 3))
}
with one 2
with two 2 --gpus 2
with apart 2 --gpus 2 --apart
with micro 2 --gpus 2 --microbatches 2
with pinned 2 --gpus 2 --set policy.pinned_share=0.5 --set policy.placement=sticky --set policy.upload_scope=next-layer
with everywhere 2 --gpus 2 --microbatches 2 --set policy.expert_parallel=1 --set policy.placement=fixed
with layer $((2 * 8)) --gpus 2 --microbatches 2 --set policy.optimizer=cpu-layer
with step $((2 * 24)) --gpus 2 --set policy.optimizer=cpu-step
with ahead $((2 * 24)) --gpus 2 $ahead
with ahead-micro $((2 * 24)) --gpus 2 --microbatches 2 $ahead

own=$(beside)
expect 4 $run -p es-moe --set policy.expert_home=ssd --set host.dram_gib="$(dram "$own" 4)"
says 'DRAM needs'

# a checkpoint from one home goes on in another
expect 0 $run -p es-moe --set policy.expert_home=ssd --set host.dram_gib="$(dram "$own" 9)" --steps 3 --save saved
expect 0 $run -p es-moe --set policy.expert_home=ssd --set host.dram_gib="$(dram "$own" 9)" --resume saved --trace resumed
check "goes on bit for bit" cmp -s <(cut -d, -f1,2 one/losses.csv | tail -3) <(cut -d, -f1,2 resumed/losses.csv | tail -3)
finish
