#!/usr/bin/env bash
# `esmoe run` as a user calls it: it trains, its folder can be read, it goes on where it stopped, and whatever goes wrong is told in one line.
. "$(dirname "$0")/harness.sh"

tiny="-m tiny-moe -M host --set network.layers=2 --set network.d_model=16 --set network.heads=2 --set network.d_ff=32 --seq-len 16 --sequences 4 --seed 7"
run="run $tiny --synthetic"

# same FILE FILE: the same steps and losses, bit for bit as printed with nine digits
same() { cmp -s <(cut -d, -f1,2 "$1") <(cut -d, -f1,2 "$2"); }
# near FILE FILE: losses within 1e-5 of each other
near() { paste -d, "$1" "$2" | awk -F, 'NR > 1 { d = $2 - $6; if (d < 0) d = -d; if ($1 != $5 || d > 1e-5 * $2) exit 1 } END { exit NR < 2 }'; }

# wrong usage and wrong input
expect 0 run --help
prints 'Example' '--device' '--data' '--resume' '--set'
expect 2 run $tiny -p es-moe
says '--data FILE or --synthetic'
expect 2 $run -p es-moe --data x
expect 2 run --synthetic -m tiny-moe -M host
says '-p POLICY'
expect 2 $run -p es-moe --steps 0
says --steps
expect 2 $run -p es-moe --lr nan
says --lr
expect 2 $run -p es-moe --save-every 5
says --save
expect 3 $run -p es-moe --workload inference
says workload inference 'predict, compare and sweep'
expect 5 $run -p es-moe --device abacus
says abacus
expect 3 run $tiny -p es-moe --data nowhere.txt
says nowhere.txt 'No such file'
expect 3 run $tiny -p es-moe --data .
says 'not a regular file'
printf 'short' >short.txt
expect 3 run $tiny -p es-moe --data short.txt
says short.txt '5 tokens' 17
head -c 4096 /dev/urandom >garbage.bin
expect 3 run $tiny -p es-moe --data garbage.bin
says garbage.bin 'token' '0 to 255'
head -c 4095 /dev/zero >odd.bin
expect 3 run $tiny -p es-moe --data odd.bin
says odd.bin 4095
expect 3 $run -p es-moe --resume nowhere
says nowhere
mkdir empty
expect 3 $run -p es-moe --resume empty
says empty 'no checkpoint'
expect 3 $run -p es-moe --trace /proc/nowhere
says /proc/nowhere
expect 3 $run -p es-moe --save /proc/nowhere
says /proc/nowhere
expect 3 $run -p es-moe --set policy.gradient_bytes=2
says policy.gradient_bytes

# it trains, and the folder holds what DESIGN names
expect 0 $run -p es-moe --steps 6 --trace es-moe --trace-steps 3
prints '^ *step +loss' '^ +0 +5\.[0-9]+ .*(compute|upload|download|optimizer|host_launch|collective)$' '^ +5 '
check "a line a step" test "$(wc -l <.out)" -eq 7
for file in run.ini losses.csv memory.csv loads.csv places.csv trace.rank0.json trace.host.json; do
	check "$file is there" test -s es-moe/$file
done
check "losses have their columns" grep -q '^step,loss,tokens_per_s,step_ms$' es-moe/losses.csv
check "six losses" test "$(wc -l <es-moe/losses.csv)" -eq 7
check "loads of three steps, two layers, eight experts" test "$(wc -l <es-moe/loads.csv)" -eq $((1 + 3 * 2 * 8))
check "every token is routed once" awk -F, 'NR > 1 { sum[$1 "," $2] += $5 } END { for (i in sum) if (sum[i] != 64) exit 1 }' es-moe/loads.csv
expect 0 trace info es-moe/trace
prints 'compute'

# where no gate is asked, counts are those of the step that is told
expect 0 $run -p static --set policy.capacity_factor=1 --set policy.dispatch=padded --steps 3 --trace padded
check "every token is counted, in the first step as well" awk -F, 'NR > 1 { sum[$1 "," $2] += $5 } END { for (i in sum) if (sum[i] != 64) exit 1 }' padded/loads.csv

# a rule in the gate's place
expect 0 $run -p es-moe --steps 3 --trace even --routing uniform
check "as many tokens for each expert" awk -F, 'NR > 1 && $5 != 8 { exit 1 }' even/loads.csv
expect 0 $run -p es-moe --steps 3 --trace given --routing es-moe/loads.csv
check "the loads of a file, its first step again and again" cmp -s <(grep '^0,' es-moe/loads.csv) <(grep '^2,' given/loads.csv | sed 's/^2/0/')
mkdir -p elsewhere && mv es-moe/loads.csv elsewhere
expect 0 validate given
mv elsewhere/loads.csv es-moe
expect 3 $run -p es-moe --routing even/loads.csv --experts 4
says loads.csv experts
expect 0 trace critical-path es-moe/trace

# which GPU computes an expert hangs on which one did before; validate knows that of the step before the recorded ones
expect 0 $run -p es-moe --gpus 2 --experts 16 --set policy.expert_home=dram --steps 12 --trace moved --trace-steps 3
check "a line an expert" test "$(wc -l <moved/places.csv)" -eq $((1 + 2 * 16))
expect 0 validate --trace simulated moved
where() { "$ESMOE" trace convert "$1" | awk -F, '$6 == "expert" && $7 == "forward" { print $2, $4, $5, $9 }' | sort; }
check "experts are computed where they were" cmp -s <(where moved) <(where simulated)
sed -i 's/^1,3,[^,]*,[^,]*$/1,3,2,-1/' moved/places.csv
expect 3 validate moved
says places.csv 'GPU'
sed -i '$d' moved/places.csv
expect 3 validate moved
says moved/places.csv:33 'layer 1, expert 15'
expect 0 plot memory -o hbm.png es-moe/trace
check "HBM over time" test -s hbm.png
check "HBM as memory.csv has it" test "$(sed -n 's/.*"name":"HBM","args":{"bytes":\([0-9]*\)}.*/\1/p' es-moe/trace.rank0.json | sort -u)" = \
	"$(tail -1 es-moe/memory.csv | cut -d, -f3)"
expect 0 predict -m es-moe/run.ini -M es-moe/run.ini -p es-moe/run.ini --routing es-moe/loads.csv
expect 0 plot losses -o losses.png es-moe
check "a figure" test -s losses.png

# a calibrated machine says how fast CPU Adam was alone: a run looks again, before it plans and when it has ended
expect 0 $run -p es-moe --set policy.expert_home=dram --set host.adam_alone_gparams_per_s=0.001 --steps 3 --trace looked
says 'CPU Adam: ' 'more than when this machine was calibrated'
check "how fast it is on this memory" grep -q '^adam_share=[1-9]' looked/run.ini
check "and what it was over the training" test "$(grep -c '^adam_pace=1$' looked/run.ini)" -eq 0
expect 0 validate looked
expect 0 $run -p static --set host.adam_alone_gparams_per_s=0.001 --steps 3 --trace unlooked
check "nothing is looked at where no expert is in DRAM" grep -q '^adam_share=1$' unlooked/run.ini

# wherever the experts are, they learn the same
expect 0 $run -p static --steps 6 --trace static
check "static learns what es-moe does" same es-moe/losses.csv static/losses.csv
for home in hbm dram ssd; do
	expect 0 $run -p es-moe --set policy.expert_home=$home --steps 6 --trace $home
	check "experts in $home learn the same" same es-moe/losses.csv $home/losses.csv
	expect 0 trace info $home/trace
	case $home in
	hbm) prints 'gpu0 compute' ;;
	dram) prints 'gpu0 upload' 'gpu0 download' 'node0 optimizer' ;;
	ssd) prints 'gpu0 upload' 'gpu0 download' 'node0 optimizer' 'node0 ssd read' ;;
	esac
done
expect 0 $run -p es-moe --set policy.expert_home=ssd --set host.dram_gib=4.00045 --steps 6 --trace narrow --ssd narrow.ssd
check "DRAM for staging and a few experts" same es-moe/losses.csv narrow/losses.csv
expect 0 trace info narrow/trace
prints 'node0 ssd read' 'node0 ssd write'
expect 0 $run -p es-moe --set policy.expert_home=dram --set policy.pinned_share=0 --steps 6 --trace unpinned
check "pinned or not" same es-moe/losses.csv unpinned/losses.csv
expect 0 $run -p es-moe --steps 6 --trace two --gpus 2 --sequences 2
check "two GPUs learn what one does" near es-moe/losses.csv two/losses.csv
check "two traces" test -s two/trace.rank1.json
# experts are balanced within a micro-batch, so that weight makes a difference
expect 0 $run -p es-moe --steps 6 --trace whole --balance 0
expect 0 $run -p es-moe --steps 6 --trace micro --balance 0 --microbatches 2
check "two micro-batches learn what one does" near whole/losses.csv micro/losses.csv

# steps that run into each other: the same bits as one after another, in whatever order experts are updated
ahead="--set policy.update_order=next-forward --set host.adam_gparams_per_s=0.001"
for home in hbm dram ssd; do
	expect 0 $run -p es-moe --set policy.expert_home=$home --steps 6 --trace apart-$home --apart
	check "one after another, experts in $home" same es-moe/losses.csv apart-$home/losses.csv
	expect 0 $run -p es-moe --set policy.expert_home=$home $ahead --steps 6 --trace ahead-$home
	check "updates put off, experts in $home" same es-moe/losses.csv ahead-$home/losses.csv
done
expect 0 $run -p es-moe --set policy.expert_home=ssd --set host.dram_gib=4.00045 $ahead --steps 6 --trace ahead-narrow
check "updates put off, few experts in DRAM" same es-moe/losses.csv ahead-narrow/losses.csv
expect 3 $run -p es-moe --set policy.update_order=next-forward --set policy.optimizer=cpu-layer
says policy.update_order cpu-expert
check "run.ini says how" grep -q '^overlap = true$' dram/run.ini
check "or that they do not" grep -q '^overlap = false$' apart-dram/run.ini
# the spans of a step are its own; every distance of ends is a time of losses.csv, but for the first, which begins with its first launch
check "as many spans in every step" test "$(grep -o '"step":[0-9]*' ahead-dram/trace.host.json | sort | uniq -c | awk '{ print $1 }' | sort -u | wc -l)" -eq 1
expect 0 validate --format csv dram apart-dram ahead-dram
check "simulated as they ran" test "$(grep -c ',step,step,' .out)" -eq 3
expect 0 trace critical-path ahead-dram/trace
expect 0 $run -p es-moe $ahead --set policy.expert_home=dram --steps 7 --save every --save-every 2 --trace-steps 3 --trace every.trace
check "checkpoints between them change nothing" cmp -s <(cut -d, -f1,2 es-moe/losses.csv) <(cut -d, -f1,2 every.trace/losses.csv | head -7)

# beyond the memory limit: an arena that holds five experts a layer, as its plan says
small="run -m tiny-moe -M host --synthetic --set network.d_ff=1024 --sequences 4 --set gpu.hbm_gib=0.045 --steps 2"
expect 0 $small -p static --experts 5
expect 4 $small -p static --experts 6
says HBM 'at most 5 experts a layer fit'
expect 4 $small -p static --experts 64
says 'does not fit policy static on host: HBM needs 0.5' 'of 0.045 GiB' 'at most 5 experts a layer fit'
for home in auto dram ssd; do
	expect 0 $small -p es-moe --experts 64 --set policy.expert_home=$home --trace small-$home
	prints '^ +1 '
done
check "from DRAM and from the SSD alike" same small-dram/losses.csv small-ssd/losses.csv
expect 0 validate --format csv small-auto small-ssd
check "memory as planned: HBM, pinned DRAM, DRAM; with experts on SSD, HBM, pinned DRAM, SSD" \
	awk -F, '$2 == "memory" { n++; if ($7 != 0 || $8 != $9) exit 1 } END { exit n != 6 }' .out
cp .out small.csv
expect 0 plot accuracy -o small.svg small.csv

# checkpoints: bit for bit
expect 0 $run -p es-moe --steps 3 --save saved
expect 0 $run -p es-moe --steps 6 --resume saved --trace resumed
check "the loss continues bit for bit" cmp -s <(cut -d, -f1,2 es-moe/losses.csv | tail -3) <(cut -d, -f1,2 resumed/losses.csv | tail -3)
expect 0 $run -p static --steps 6 --resume saved --trace other
check "also under another policy" same resumed/losses.csv other/losses.csv
expect 3 $run -p es-moe --steps 3 --resume saved
says '3 steps are done'
expect 3 run $tiny --synthetic -p es-moe --steps 6 --resume saved --seed 8
says '--seed 7'
expect 3 $run -p es-moe --steps 6 --resume saved --experts 4
says 'another network'
head -c 1000 saved/step-3.checkpoint >cut.checkpoint
expect 3 $run -p es-moe --steps 6 --resume cut.checkpoint
says cut.checkpoint 'not a whole checkpoint'

# killed at any moment: the last whole checkpoint is there
for pause in 0.3 0.5 0.8; do
	"$ESMOE" $run -p es-moe --steps 100000 --save killed --save-every 1 >.out 2>&1 &
	pid=$!
	for _ in $(seq 600); do
		[ -n "$(find killed -name 'step-*.checkpoint' 2>/dev/null)" ] && break
		sleep 0.1
	done
	sleep $pause
	kill -9 $pid
	wait $pid 2>/dev/null
	step=$(find killed -name 'step-*.checkpoint' | sed 's/.*step-\([0-9]*\).*/\1/' | sort -n | tail -1)
	expect 0 $run -p es-moe --steps $((step + 1)) --resume killed
	prints "^ +$step "
done

# signals end a run cleanly, with its trace
for signal in TERM INT; do
	checks=$((checks + 1))
	last="SIG$signal"
	number=$([ $signal = TERM ] && echo 15 || echo 2)
	timeout --preserve-status -s $signal 3 "$ESMOE" $run -p es-moe --steps 100000 --trace stopped --save stopped.save >.out 2>.err
	status=$?
	[ $status -eq $((128 + number)) ] || complain "$last" "status $status"
	says interrupted
	check "one line" test "$(wc -l <.err)" -eq 1
	expect 0 trace info stopped/trace
	check "a checkpoint of SIG$signal" test -n "$(find stopped.save -name 'step-*.checkpoint')"
done

# a device that fails in the middle of training: reads of experts end where someone has cut the file
"$ESMOE" $run -p es-moe --set policy.expert_home=ssd --set host.dram_gib=4.00045 --steps 100000 --trace failed --ssd failed.ssd >.out 2>.err &
pid=$!
for _ in $(seq 600); do
	[ "$(grep -c '' failed/losses.csv 2>/dev/null)" -ge 4 ] 2>/dev/null && break
	sleep 0.05
done
while kill -0 $pid 2>/dev/null; do # what is written makes it long again
	[ -e failed.ssd/experts.bin ] && truncate -s 0 failed.ssd/experts.bin
	sleep 0.02
done
wait $pid
status=$?
last="an expert file cut short"
check "status 5" test $status -eq 5
says 'esmoe: ' 'failed.ssd/experts.bin' 'ended after'
check "one line" test "$(grep -c '' .err)" -eq 1
expect 0 trace info failed/trace
prints 'node0 ssd read'

# full disks
if [ -e /dev/full ]; then
	mkdir -p full && ln -sf /dev/full full/losses.csv
	expect 3 $run -p es-moe --trace full
	says full/losses.csv 'No space left'
fi
(
	ulimit -f 8
	trap '' XFSZ
	"$ESMOE" $run -p es-moe --steps 2 --save full.save >.out 2>.err
	echo $? >.status
)
check "status 3 on a full disk" test "$(cat .status)" -eq 3
last="a checkpoint on a full disk"
says full.save 'cannot be written'
check "nothing of it is left" test -z "$(find full.save -type f)"

finish
