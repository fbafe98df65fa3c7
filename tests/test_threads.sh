#!/usr/bin/env bash
# Training runs that keep every kind of thread busy: two GPUs, experts in DRAM and on SSD, prefetch, several Adam threads, signals, checkpoints. In a
# build with the thread sanitizer a race ends a run; the tests written with Criterion do not start there, so these stand for them:
#     meson setup build-thread -Db_sanitize=thread -Doptimization=1 && meson test -C build-thread threads
. "$(dirname "$0")/harness.sh"
export TSAN_OPTIONS="halt_on_error=1 exitcode=66 ${TSAN_OPTIONS:-}"

run="run -m tiny-moe -M host --synthetic --seq-len 16 --sequences 4 --seed 7 --set network.layers=2 --set network.d_model=16 --set network.heads=2 \
	--set network.d_ff=32"

expect 0 $run -p static --gpus 2 --steps 4 --trace static
expect 0 $run -p es-moe --set policy.expert_home=dram --gpus 2 --steps 4 --trace dram
expect 0 $run -p es-moe --set policy.expert_home=ssd --set host.dram_gib=4.0007 --gpus 2 --steps 4 --trace ssd
check "SSD or DRAM, the same losses" cmp -s <(cut -d, -f1,2 dram/losses.csv) <(cut -d, -f1,2 ssd/losses.csv)
expect 0 $run -p es-moe --set policy.expert_home=dram --set policy.upload_scope=next-layer --set policy.placement=fixed \
	--set policy.optimizer=cpu-layer \
	--set host.adam_threads=2 --gpus 4 --microbatches 2 --steps 3 --trace four
expect 0 trace info four/trace
expect 0 $run -p es-moe --set policy.expert_home=dram --gpus 2 --steps 2 --save saved
expect 0 $run -p es-moe --set policy.expert_home=ssd --gpus 2 --steps 4 --resume saved
for policy in fastmoe megablocks tutel; do
	expect 0 $run -p $policy --gpus 2 --steps 2
done
timeout --preserve-status -s TERM 4 "$ESMOE" $run -p es-moe --gpus 2 --steps 100000 --trace stopped >.out 2>.err
check "SIGTERM ends it cleanly" test $? -eq 143
check "with its trace" test -s stopped/trace.rank1.json
"$ESMOE" $run -p es-moe --set policy.expert_home=ssd --set host.dram_gib=4.0007 --gpus 2 --steps 100000 --ssd cut >.out 2>.err &
pid=$!
for _ in $(seq 600); do
	grep -q '^ *3 ' .out && break
	sleep 0.05
done
while kill -0 $pid 2>/dev/null; do # what is written makes it long again
	[ -e cut/experts.bin ] && truncate -s 0 cut/experts.bin
	sleep 0.02
done
wait $pid
check "a failed read ends it cleanly" test $? -eq 5

# two processes; then the one that is left when the other was killed
nodes="--gpus 2 --set machine.gpus_per_node=1 --set pcie.gpus_per_root=1 --set policy.all_to_all=linear --rendezvous meet"
start() { RANK=$1 WORLD_SIZE=2 "$ESMOE" $run -p es-moe --set policy.expert_home=dram $nodes --trace "$2" --steps "$3" >.out.$1 2>.err.$1 & }
start 1 pair 4
other=$!
start 0 pair 4
wait $! || complain "rank 0 of 2" "$(head -c 600 .err.0)"
wait $other || complain "rank 1 of 2" "$(head -c 600 .err.1)"
check "two processes train" test "$(grep -c '' pair/losses.csv)" -eq 5
start 1 left 100000
other=$!
start 0 left 100000
pid=$!
for _ in $(seq 600); do
	grep -q '^ *3 ' .out.0 && break
	sleep 0.05
done
kill -9 $other
wait $other 2>/dev/null
wait $pid
check "the end of one ends the other" test $? -eq 5
check "with its trace" test -s left/trace.rank0.json
finish
