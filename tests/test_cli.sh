#!/usr/bin/env bash
# Every command as a user would call it, when nothing is wrong.
. "$(dirname "$0")/harness.sh"

small="-m gpt-moe-s -M a100-40g-x4"
header=policy,model,machine,gpus,experts,tokens_per_s,step_ms,bound_by,hbm_gib,dram_gib,ssd_gib,status

# help and version
expect 0 --help
prints '^  predict ' '^  sweep ' 'Example'
expect 0 --version
prints '^esmoe [0-9]+\.[0-9]+'
for command in models machines policies show predict compare sweep trace "trace info" "trace convert" "trace diff" "trace critical-path" \
	plot "plot timeline" "plot throughput" "plot best" "plot breakdown" "plot memory"; do
	# shellcheck disable=SC2086
	expect 0 $command --help
	prints "esmoe $command"
	check "help of $command fits 80 columns" test "$(wc -L <.out)" -le 80
done
for command in predict compare sweep; do
	expect 0 $command --help
	prints 'Example' '--experts' '--set'
done

# lists and show: what is listed can be shown, and what is shown is taken back
expect 0 models
prints '^gpt-moe-l ' '^mixtral-8x7b '
expect 0 machines
prints '^a100-40g-x4 ' '^h200-x2 '
expect 0 policies
prints '^es-moe ' '^tutel ' '^static '
prints 'ES-MoE .*\.\.\.$'
check "the list and the knobs fit 80 columns" test "$(wc -L <.out)" -le 80
prints '^KNOB +plain ' '^placement +fixed .*lpt'
expect 0 policies --markdown
check "a row for each policy, and no others" test "$(sed 1,2d .out | cut -d'`' -f2 | tr '\n' ' ')" = \
	"$(cd "$ESMOE_SOURCE/model/presets/policies" && printf '%s\n' *.ini | sed 's/\.ini$//' | LC_ALL=C sort | tr '\n' ' ')"
while IFS='|' read -r _ name knobs _; do
	name=$(echo "$name" | tr -d ' `')
	echo "$knobs" | tr ',' '\n' | tr -d '`' | while read -r knob value; do
		[ "$knob" = none ] || grep -q "^$knob = $value$" "$ESMOE_SOURCE/model/presets/policies/$name.ini" || echo "$name $knob $value"
	done
done <<<"$(sed 1,2d .out)" >strays
check "what the table says stands in the presets" test ! -s strays
check "README's table of systems is what policies --markdown prints" diff .out \
	<(sed -n '/^| system | knobs/,/^$/p' "$ESMOE_SOURCE/README.md" | sed '/^$/d')
expect 0 machines
prints 'RTX 4090 '
check "the list fits 80 columns" test "$(wc -L <.out)" -le 80
for kind in model machine policy; do
	"$ESMOE" "$(echo ${kind}s | sed 's/policys/policies/')" | sed '1d;/^$/,$d' | cut -d' ' -f1 >names
	check "there are ${kind}s" test -s names
	while read -r name; do
		expect 0 show $kind "$name"
	done <names
done
"$ESMOE" show model gpt-moe-s >mine-model.ini
"$ESMOE" show machine a100-40g-x4 >mine-machine.ini
"$ESMOE" show policy es-moe >mine-policy.ini
expect 0 show machine mine-machine.ini
check "show prints a file as it is" cmp .out mine-machine.ini
expect 0 predict -m mine-model.ini -M ./mine-machine.ini -p "$work/mine-policy.ini" --format csv
prints '^mine-policy,mine-model,mine-machine,4,8,'
cut -d, -f6-12 .out | tail -1 >mine
expect 0 predict $small -p es-moe --format csv
cut -d, -f6-12 .out | tail -1 >theirs
check "an edited copy that is not edited predicts the same" cmp mine theirs

# predict
expect 0 predict $small -p es-moe
prints 'tokens/s' 'speed of light' 'bound by' 'memory GiB' 'roofline'
check "the table fits 80 columns" awk 'length($0) > 80 { exit 1 }' .out
expect 0 predict $small -p es-moe --set policy.expert_home=dram --set host.adam_slowest=0.8 --set host.adam_fastest=1.1
prints '^ +[0-9.]+ to [0-9.]+ ms, as calibration saw host memory vary'
check "with a range, too" awk 'length($0) > 80 { exit 1 }' .out
expect 0 predict $small -p tutel
prints '^pipeline degree +[1248] in [0-9]+' '^all-to-all +hierarchical in 0 of '
expect 0 predict $small -p tutel --experts 2 --sequences 1 --seq-len 64 --gpus 8
prints '^each expert in +[124] to [124] slices'
expect 0 predict $small -p tutel --experts 2
prints '^experts travel +in [1-9]'
check "what loads chose fits 80 columns" awk 'length($0) > 80 { exit 1 }' .out
expect 0 predict $small -p fastermoe --routing zipf:1.2
prints '^experts shadowed +[0-9.]+ of a layer'
expect 0 predict $small -p se-moe --tasks 8,4,2,2 --gpus 4 --format csv
prints '^share,task,sequences,gpus,step_ms' '^equal,1,8,1,' '^by load,4,2,1,'
expect 2 predict $small -p se-moe --tasks 8,4 --sequences 3
says '--tasks does not go with --sequences'
expect 2 predict $small -p se-moe --tasks 8,x
says '--tasks'
expect 0 predict $small -p es-moe --format csv
prints "^$header" '^es-moe,gpt-moe-s,a100-40g-x4,4,8,.*,ok,'
expect 0 predict $small -p es-moe --format json
check "JSON parses, with the CSV's names" python3 -c "
import json, sys
row = json.load(open('.out'))
names = '$header'.split(',')
sys.exit(list(row)[:len(names)] != names or row['experts'] != 8 or row['status'] != 'ok')"
expect 0 predict $small -p es-moe --experts 16 --gpus 2 --format csv
prints '^es-moe,gpt-moe-s,a100-40g-x4,2,16,'
for option in --no-launch --no-sync --no-event --no-sharing "--steps 1" "--routing zipf:1.2 --seed 7" "--sequences 8 --seq-len 256 --microbatches 2" "--set policy.placement=fixed"; do
	# shellcheck disable=SC2086
	expect 0 predict $small -p es-moe $option
done
expect 0 predict $small -p es-moe --trace t --memory memory.csv
check "a trace file a rank and one for the host" test -s t.rank0.json -a -s t.rank3.json -a -s t.host.json
check "memory as CSV" grep -q '^tier,class,bytes,room$' memory.csv
for info in info critical-path; do
	expect 0 trace $info t.rank0.json t.rank1.json t.rank2.json t.rank3.json t.host.json
done

expect 0 trace diff t t
check "trace diff fits 80 columns" test "$(wc -L <.out)" -le 80

# does not fit: tier, need, room
expect 4 predict -m gpt-moe-l -M a100-40g-x4 -p tutel --experts 64 --trace none --memory none.csv
says HBM GiB 'at most'
absent none

# compare
# inference
serve="--workload inference --batch 2 --context 64 --generate 4"
for policy in static se-moe-ring on-demand es-moe; do
	expect 0 predict $small -p $policy $serve
	prints 'generates with' 'tokens/s generated' '^first token' '^further tokens' 'bound by' kv_cache
	check "the table fits 80 columns" awk 'length($0) > 80 { exit 1 }' .out
done
expect 0 predict $small -p se-moe-ring $serve --trace serve --memory serve.csv
check "a trace and the memory are left" test -s serve.rank0.json -a -s serve.csv
expect 0 trace info serve
expect 0 trace critical-path serve
expect 0 plot timeline -o serve.svg serve
expect 0 plot timeline --all -o serve-all.svg serve
expect 0 plot memory -o serve-memory.svg serve.csv
expect 0 predict $small -p static $serve --format json
check "latencies are numbers" python3 -c "import json; row = json.load(open('.out')); assert row['prefill_ms'] > row['decode_ms'] > 0"
expect 0 predict $small -p static --format json
check "training has none" python3 -c "import json; row = json.load(open('.out')); assert row['prefill_ms'] is row['decode_ms'] is None"
expect 0 predict $small -p static $serve --format csv --set scenario.generate=4
expect 0 compare $small -p static,se-moe-ring,on-demand $serve
prints 'prefill' 'decode' '^\* static'
check "the table fits 80 columns" awk 'length($0) > 80 { exit 1 }' .out
expect 0 sweep $small -p static,on-demand $serve --experts 8,16 -o serve-sweep.csv
check "a row for each" test "$(grep -c ',ok,' serve-sweep.csv)" -eq 4
expect 0 plot best -o best.svg serve-sweep.csv

expect 0 compare $small -p es-moe,tutel
prints '^\* (es-moe|tutel) ' 'GPUs: 4, experts: 8'
expect 0 compare -m gpt-moe-s,gpt-moe-m -M a100-40g-x4 -p es-moe,fairseq,tutel,zero-offload-e --experts 8:32:x2
prints 'es-moe +fairseq +tutel +zero-offload-e' '^gpt-moe-m +32 '
check "three expert counts of two models" test "$(grep -c '^gpt-moe' .out)" -eq 6
check "the table fits 80 columns" awk 'length($0) > 80 { exit 1 }' .out
expect 0 compare $small -p es-moe,tutel --experts 8,16 --format csv
check "a header and four rows" test "$(wc -l <.out)" -eq 5
expect 0 compare $small -p es-moe,tutel --format json
check "JSON is a list of two" python3 -c "import json, sys; sys.exit(len(json.load(open('.out'))) != 2)"
expect 0 compare $small -p es-moe,static --experts 8:24:+8 --format csv
prints ',8,' ',16,' ',24,'

# sweep: the grid's order, the same bytes whatever the threads, continued to the same bytes
grid="sweep -m gpt-moe-s -M a100-40g-x4 -p es-moe,tutel --gpus 1,2,4 --experts 8:64:x2 --sequences 4"
expect 0 $grid -o one.csv --threads 1
check "the header's names" grep -q "^$header" one.csv
check "a header and 24 rows" test "$(wc -l <one.csv)" -eq 25
expect 0 $grid -o two.csv --threads 2
check "the same bytes with 1 and 2 threads" cmp one.csv two.csv
for bytes in 0 40 600 1501 $(($(stat -c %s one.csv) - 1)); do
	head -c "$bytes" one.csv >torn.csv
	expect 0 $grid -o torn.csv
	check "the same bytes when continued at byte $bytes" cmp one.csv torn.csv
done
expect 0 $grid -o one.csv
check "a whole file stays as it is" cmp one.csv two.csv
expect 0 $grid -o points.csv --plot points.svg
check "a figure" test -s points.svg
expect 0 $grid -o /dev/stdout
check "a pipe gets the same bytes" cmp one.csv .out

# a signal leaves whole rows and status 130, and the same command goes on
long="sweep -m gpt-moe-s -M a100-40g-x4 -p es-moe,tutel --gpus 1:8 --experts 8:64:+2"
set -m
for signal in INT:130 TERM:143; do
	rm -f stopped.csv
	"$ESMOE" $long -o stopped.csv 2>stopped.err &
	pid=$!
	for _ in $(seq 200); do
		[ -s stopped.csv ] && [ "$(wc -l <stopped.csv)" -gt 3 ] && break
		sleep 0.02
	done
	kill -"${signal%:*}" $pid
	wait $pid
	status=$?
	check "status ${signal#*:} after SIG${signal%:*}, not $status" test $status -eq "${signal#*:}"
	check "one line after SIG${signal%:*}" test "$(wc -l <stopped.err)" -eq 1
	check "whole rows" test "$(tail -c 1 stopped.csv | od -An -c | tr -d ' ')" = '\n'
done
set +m
cp stopped.csv before.csv
expect 0 $long -o stopped.csv
check "it went on after the rows that were there" cmp -n "$(stat -c %s before.csv)" before.csv stopped.csv
check "all rows" test "$(wc -l <stopped.csv)" -eq $((1 + 2 * 8 * 29))
expect 0 $long -o whole.csv
check "the same bytes as without the signal" cmp stopped.csv whole.csv

# a reader that has seen enough, and standard streams that are closed
"$ESMOE" models 2>.err | head -1 >/dev/null
check "quiet when the reader leaves" test ! -s .err
"$ESMOE" models >&- 2>.err
check "quiet when stdout is closed" test $? -eq 0 -a ! -s .err
"$ESMOE" $grid -o closed.csv >&- 2>&- <&-
check "files are whole when the standard streams are closed" cmp one.csv closed.csv

finish
