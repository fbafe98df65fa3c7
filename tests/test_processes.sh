#!/usr/bin/env bash
# `esmoe run` as several processes, one a node, on this host: they train what one process trains, bit for bit, and whatever happens to one of them
# ends all, with its name, exit status 5 and the traces of the others.
. "$(dirname "$0")/harness.sh"

net="-m tiny-moe -M host --set network.layers=2 --set network.d_model=16 --set network.heads=2 --set network.d_ff=32 --seq-len 16 --seed 7 --synthetic"
nodes="--set policy.all_to_all=linear --sequences 2"
two="$net $nodes --gpus 2 --set machine.gpus_per_node=1 --set pcie.gpus_per_root=1"
four="$net $nodes --gpus 4 --set machine.gpus_per_node=2 --set pcie.gpus_per_root=2"
pid=()

# start RANK SIZE ARGUMENT...: one process of a run as torchrun would start it, in the background; leaves .out.RANK, .err.RANK.
start() {
	local rank=$1 size=$2
	shift 2
	RANK=$rank WORLD_SIZE=$size LOCAL_RANK=$rank "$ESMOE" run --rendezvous meet "$@" >.out.$rank 2>.err.$rank &
	pid[rank]=$!
}

# ends RANK STATUS: it ends so, within 30 s; a failure says one line. What it said is in .err.
ends() {
	local rank=$1 wanted=$2 status since=$SECONDS
	checks=$((checks + 1))
	for _ in $(seq 300); do
		kill -0 "${pid[rank]}" 2>/dev/null || break
		sleep 0.1
	done
	kill -9 "${pid[rank]}" 2>/dev/null && complain "$last" "rank $rank still runs after $((SECONDS - since)) s"
	wait "${pid[rank]}" 2>/dev/null
	status=$?
	cp .err.$rank .err
	[ "$status" -eq "$wanted" ] || complain "$last" "rank $rank: status $status, expected $wanted" "$(head -c 600 .err)"
	[ "$wanted" -eq 0 ] || [ "$(grep -c '^esmoe: ' .err)" -eq 1 ] || complain "$last" "rank $rank says: $(head -c 600 .err)"
}

# both STATUS ARGUMENT...: two processes with the same arguments.
both() {
	local wanted=$1
	shift
	last="2 processes: $*"
	start 0 2 "$@"
	start 1 2 "$@"
	ends 0 "$wanted"
	ends 1 "$wanted"
}

# under_way FOLDER: the run has made some steps.
under_way() {
	for _ in $(seq 300); do
		[ "$(grep -c '' "$1/losses.csv" 2>/dev/null)" -ge 6 ] 2>/dev/null && return
		sleep 0.05
	done
	complain "$last" "does not get under way: $(head -c 300 .err.*)"
}

same() { cmp -s <(cut -d, -f1,2 "$1/losses.csv") <(cut -d, -f1,2 "$2/losses.csv") && cmp -s "$1/loads.csv" "$2/loads.csv"; }

# two processes of one GPU against one process of two
expect 0 run $two -p static --steps 6 --trace static
both 0 $two -p static --steps 6 --trace static.2
check "static: the same losses and loads, bit for bit" same static static.2
cp .out.1 .out
check "rank 1 prints nothing" test ! -s .out.1
check "rank 0 prints a line a step" test "$(wc -l <.out.0)" -eq 7
for home in dram ssd; do
	run="$two -p es-moe --set policy.expert_home=$home --steps 6"
	expect 0 run $run --trace $home
	both 0 $run --trace $home.2 --ssd $home.ssd
	check "experts in $home: the same losses and loads, bit for bit" same $home $home.2
done
check "no expert files are left" test -z "$(find dram.ssd ssd.ssd -name '*.bin' 2>/dev/null)"
expect 0 run $two -p es-moe --set policy.expert_home=dram --microbatches 2 --steps 4 --trace micro
both 0 $two -p es-moe --set policy.expert_home=dram --microbatches 2 --steps 4 --trace micro.2
check "two micro-batches: the same losses and loads, bit for bit" same micro micro.2
expect 0 run $two -p static --set policy.expert_parallel=1 --steps 4 --trace copies
both 0 $two -p static --set policy.expert_parallel=1 --steps 4 --trace copies.2
check "experts on every GPU: the same losses and loads, bit for bit" same copies copies.2

# steps that run into each other, in both orders of updates, and with checkpoints between them
ahead="--set policy.expert_home=dram --set policy.update_order=next-forward --set host.adam_gparams_per_s=0.001"
expect 0 run $two -p es-moe --set policy.expert_home=dram --steps 6 --apart --trace apart
both 0 $two -p es-moe $ahead --steps 6 --trace ahead.2
check "updates put off, by two processes" same apart ahead.2
both 0 $two -p es-moe $ahead --steps 6 --trace kept.2 --trace-steps 2 --save kept.saved --save-every 2
check "with checkpoints between" cmp -s <(cut -d, -f1,2 apart/losses.csv) <(cut -d, -f1,2 kept.2/losses.csv)

# two processes of two GPUs against one of four
for policy in "static" "es-moe --set policy.expert_home=dram"; do
	rm -rf four four.2
	expect 0 run $four -p $policy --steps 5 --trace four
	both 0 $four -p $policy --steps 5 --trace four.2
	check "$policy on four GPUs: the same losses and loads, bit for bit" same four four.2
done

# the folder of several processes
for file in run.ini losses.csv memory.csv loads.csv trace.rank0.json trace.rank1.json trace.rank2.json trace.rank3.json trace.host.json trace.host1.json; do
	check "$file is there" test -s four.2/$file
done
check "memory of four GPUs" test "$(cut -d, -f2 four.2/memory.csv | sort -u | tr '\n' ' ')" = "0 1 2 3 gpu "
check "as many bytes as one process has: HBM, pinned, and of experts in DRAM" cmp -s <(cut -d, -f1,2,3,6,7 four/memory.csv) <(cut -d, -f1,2,3,6,7 four.2/memory.csv)
expect 0 trace info four.2/trace
prints '^gpu0 compute' '^gpu3 compute' '^node0 optimizer' '^node1 optimizer' '5 steps, 4 GPUs'
prints "^$(cd four && "$ESMOE" trace info trace | sed -n '1s/ spans.*//p') spans"
expect 0 validate four.2
prints 'gpu3 compute' 'node1 optimizer'
expect 0 trace critical-path four.2/trace

# checkpoints: rank 0 has what all have
both 0 $two -p es-moe --set policy.expert_home=dram --steps 3 --save saved
check "one file" test "$(find saved -type f | wc -l)" -eq 1
both 0 $two -p es-moe --set policy.expert_home=dram --steps 6 --resume saved --trace resumed
check "two processes go on bit for bit" cmp -s <(cut -d, -f1,2 dram/losses.csv | tail -3) <(cut -d, -f1,2 resumed/losses.csv | tail -3)
expect 0 run $two -p static --steps 6 --resume saved --trace alone
check "so does one, with its experts in HBM" cmp -s <(cut -d, -f1,2 dram/losses.csv | tail -3) <(cut -d, -f1,2 alone/losses.csv | tail -3)
expect 0 run $two -p static --steps 3 --save saved.alone
cmp -s saved/step-3.checkpoint saved.alone/step-3.checkpoint
check "the same file, whoever saved it" test $? -eq 0
both 0 $two -p static --steps 6 --resume saved.alone --trace resumed.static
check "two go on from one's" cmp -s <(cut -d, -f1,2 dram/losses.csv | tail -3) <(cut -d, -f1,2 resumed.static/losses.csv | tail -3)

# a rank that is killed
for dies in 1 0; do
	last="rank $dies is killed"
	rm -rf killed
	start 0 2 $two -p es-moe --steps 1000000 --trace killed
	start 1 2 $two -p es-moe --steps 1000000 --trace killed
	under_way killed
	kill -9 "${pid[dies]}"
	wait "${pid[dies]}" 2>/dev/null
	since=$SECONDS
	ends $((1 - dies)) 5
	says "rank $dies (" 'died'
	check "at once" test $((SECONDS - since)) -lt 6
	expect 0 trace info killed/trace.rank$((1 - dies)).json
	prints "gpu$((1 - dies)) compute"
	expect 0 trace info killed/trace
done

# a rank that stands still; it wakes up alone
last="rank 1 stands still"
rm -rf still
start 0 2 $two -p static --steps 1000000 --trace still
start 1 2 $two -p static --steps 1000000 --trace still
under_way still
kill -STOP "${pid[1]}"
ends 0 5
says 'rank 1 (' 'nothing was heard of it'
check "its trace" test -s still/trace.rank0.json
kill -CONT "${pid[1]}"
ends 1 5

# a rank that fails tells why
last="rank 1 cannot read on"
rm -rf failed failed.ssd
start 0 2 $two -p es-moe --set policy.expert_home=ssd --set host.dram_gib=4.0003 --steps 1000000 --trace failed --ssd failed.ssd
start 1 2 $two -p es-moe --set policy.expert_home=ssd --set host.dram_gib=4.0003 --steps 1000000 --trace failed --ssd failed.ssd
under_way failed
for _ in $(seq 1000); do # what is written makes it long again
	kill -0 "${pid[1]}" 2>/dev/null || break
	[ -e failed.ssd/rank1/experts.bin ] && truncate -s 0 failed.ssd/rank1/experts.bin
	sleep 0.02
done
ends 0 5
says 'rank 1 (' 'failed.ssd/rank1/experts.bin' 'ended after'
ends 1 5
says 'rank 1 (' 'failed.ssd/rank1/experts.bin'
expect 0 trace info failed/trace

# a signal to one stops all behind the same step
last="SIGTERM to rank 1"
rm -rf stopped
start 0 2 $two -p static --steps 1000000 --trace stopped --save stopped.save
start 1 2 $two -p static --steps 1000000 --trace stopped --save stopped.save
under_way stopped
kill -TERM "${pid[1]}"
ends 0 143
says 'interrupted after step'
cp .err .err.first
ends 1 143
check "both say the same" cmp -s .err .err.first
check "a checkpoint" test -n "$(find stopped.save -name 'step-*.checkpoint')"
expect 0 trace info stopped/trace
prints '2 GPUs'

# who does not belong together, and who does not come
last="other options"
start 0 2 $two -p static --steps 3
start 1 2 $two -p static --steps 3 --lr 0.002
ends 0 3
says 'rank 1 (' '--lr 0.002' '--lr 0.001'
ends 1 3
says 'rank 1 (' '--lr 0.002'
last="another network"
start 0 2 $two -p static --steps 3
start 1 2 $two -p static --steps 3 --experts 4
ends 0 3
says 'network.experts'
ends 1 3
last="only rank 0"
start 0 2 $two -p static --rendezvous-timeout 2
ends 0 5
says 'rank 1 of 2 has not come' 'meet' '2 s'
check "no address is left" test ! -e meet
last="only rank 1"
start 1 2 $two -p static --rendezvous-timeout 2
ends 1 5
says 'rank 0 was not found at meet' '2 s'
last="two of three ranks"
three="$net $nodes --gpus 3 --set machine.gpus_per_node=1 --set pcie.gpus_per_root=1"
start 0 3 $three -p static --rendezvous-timeout 3
start 2 3 $three -p static --rendezvous-timeout 3
ends 0 5
says 'rank 1 of 3'
ends 2 5
says 'rank 1 of 3'
start 0 3 $three -p static --steps 3 --trace three
start 1 3 $three -p static --steps 3 --trace three
start 2 3 $three -p static --steps 3 --trace three
for rank in 0 1 2; do ends $rank 0; done
expect 0 run $three -p static --steps 3 --trace three.1
check "three processes" same three three.1

# through a port, and behind an agent that has taken it
last="HOST:PORT"
port=$((20000 + RANDOM % 10000))
for agent in False True; do
	for rank in 0 1; do
		RANK=$rank WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=$port TORCHELASTIC_USE_AGENT_STORE=$agent "$ESMOE" run $two -p static --steps 2 >.out.$rank 2>.err.$rank &
		pid[rank]=$!
	done
	ends 0 0
	ends 1 0
done
for launcher in "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE" "PMI_RANK PMI_SIZE" "SLURM_PROCID SLURM_NTASKS"; do
	set -- $launcher
	last="$1"
	for rank in 0 1; do
		env "$1=$rank" "$2=2" "$ESMOE" run $two -p static --steps 2 --rendezvous meet >.out.$rank 2>.err.$rank &
		pid[rank]=$!
	done
	ends 0 0
	ends 1 0
done

# wrong from the start
RANK=0 WORLD_SIZE=2 expect 2 run $two -p static
says torchrun '--rendezvous FILE' 'MASTER_ADDR'
RANK=2 WORLD_SIZE=2 expect 2 run $two -p static
says "RANK = '2'" 'from 0 to 1'
RANK=0 expect 2 run $two -p static
says "RANK = '0'" 'WORLD_SIZE'
OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=3 expect 2 run $two -p static --rendezvous meet
says mpirun '3 processes' 'machine.gpus_per_node = 1' '2 nodes'
expect 2 run $two -p static --rendezvous meet
says --rendezvous 'mpirun, srun or torchrun'
RANK=0 WORLD_SIZE=2 expect 3 run $two -p static --rendezvous nowhere/meet
says nowhere/meet
expect 2 run $two -p static --rendezvous-timeout 0
says --rendezvous-timeout
last="a policy that several processes cannot run"
both 3 $two -p static --set policy.all_to_all=auto
says 'rank ' policy.all_to_all linear

finish
