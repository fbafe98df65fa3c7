#!/usr/bin/env bash
# What a user can get wrong: one clear line, the status that scripts rely on, and no file that is half there.
. "$(dirname "$0")/harness.sh"

good="-m gpt-moe-s -M a100-40g-x4 -p es-moe"

# the command line: status 2
expect 2
says 'no command'
expect 2 predcit
says "'predict'"
expect 2 xyzzyxyzzy
says 'esmoe --help'
expect 2 predict
says '-m MODEL'
expect 2 predict -m gpt-moe-s
says '-M MACHINE'
expect 2 predict -m gpt-moe-s -M a100-40g-x4
says '-p POLICY'
expect 2 predict $good --no-such-option
says 'no-such-option'
expect 2 predict $good surplus
says 'surplus'
expect 2 predict $good --format yaml
says yaml 'table, csv or json'
expect 2 show
expect 2 show model
expect 2 show modle gpt-moe-s
says "'modle'" model
expect 2 sweep $good
says '-o FILE.csv'
expect 2 sweep $good -p es-moe,es-moe -o x.csv
says twice
expect 2 compare $good,
expect 2 predict $good --workload serving
says serving 'training or inference'
for option in batch context generate; do
	expect 2 predict $good --$option 4
	says "--$option" '--workload inference'
done
expect 2 predict $good --workload inference --batch 4 --sequences 4
says --batch --sequences
expect 2 predict $good --workload inference --generate 0
says --generate "'0'"
expect 3 predict $good --workload inference --batch 100000 --generate 100000
says scenario.generate 100000 'at most 2147483647 tokens'
expect 2 predict $good --workload inference --steps 3
says --steps --generate
expect 3 predict $good --set scenario.workload=serving
says workload serving inference
expect 3 predict -m switch-26b -M h200-x8 -p static --workload inference
says encoder-decoder
for option in gpus experts top-k sequences seq-len microbatches steps threads; do
	for value in 0 -1 1.5 nan inf x '' 99999999999999999999 '4 ' 0x10; do
		expect 2 predict $good --$option "$value"
		says "$option" "'$value'"
	done
done
for value in -1 18446744073709551616 x ''; do
	expect 2 predict $good --seed "$value"
	says seed
done
for value in 8: :8 8:4 8:64:2 8:64:x1 8:64:x0 8:64:+0 8:64:-8 1,,2 , 8:64:x2:3 1:1048576; do
	expect 2 sweep $good --experts "$value" -o x.csv
	says experts "${value%,*}"
done
expect 2 sweep $good --gpus 1:1048 --experts 1:1048 -o x.csv
says configurations
absent x.csv
expect 2 predict $good --set
expect 2 predict $good --set nonsense
expect 2 predict $good --set gpuu.hbm_gib=1
says gpuu gpu

# names and keys: status 3, with the nearest
expect 3 predict -m gpt-moe-x -M a100-40g-x4 -p es-moe
says gpt-moe-x "did you mean"
expect 3 predict -m gpt-moe-s -M a100-40g-x5 -p es-moe
says a100-40g-x5 a100-40g-x4
expect 3 predict -m gpt-moe-s -M a100-40g-x4 -p esmoe
says esmoe es-moe
expect 3 show machine h200
expect 3 show machine ./none.ini
says none.ini
printf '[gpu]\nhbm_gb = 80\n' >wrong.ini
expect 3 show machine wrong.ini
says wrong.ini:2 hbm_gb
expect 3 predict $good --set gpu.hbm_gb=80
says gpu.hbm_gb hbm_gib
expect 3 predict $good --set policy.placement=ltp
says policy.placement ltp lpt
for value in 0 -1 nan inf -inf 1e999 abc '' 1e300; do
	expect 3 predict $good --set "gpu.hbm_gib=$value"
	says gpu.hbm_gib
done
expect 3 predict $good --top-k 9
says top_k 8
expect 3 predict $good --microbatches 33
says microbatches 33 32
expect 3 predict $good --sequences 1048576 --seq-len 1048576
says sequences seq_len
expect 3 predict $good --routing zipf:nan
expect 3 predict $good --routing zipf
expect 3 predict $good --routing unifrom
says unifrom

# more than can be simulated, told before it is
expect 3 predict -m gpt-moe-l -M h200-x8 -p zero-offload-e --gpus 2048 --experts 2048 --set host.dram_gib=100000
says 'million stages' 2048
expect 3 predict -m gpt-moe-l -M h200-x8 -p zero-offload-e --gpus 64 --experts 256 --steps 1000
says 'million stages' --steps
expect 3 predict $good --set 'scenario.routing=a
b'
says 'control character 0x0a'

# files: not there, a folder, empty, binary, truncated, misspelt
expect 3 predict -m ./none.ini -M a100-40g-x4 -p es-moe
says none.ini
mkdir folder.ini
expect 3 predict -m ./folder.ini -M a100-40g-x4 -p es-moe
says folder.ini
: >empty.ini
expect 3 predict -m ./empty.ini -M a100-40g-x4 -p es-moe
says empty.ini
head -c 4096 /dev/urandom >binary.ini
for part in "-m ./binary.ini -M a100-40g-x4 -p es-moe" "-m gpt-moe-s -M ./binary.ini -p es-moe" "-m gpt-moe-s -M a100-40g-x4 -p ./binary.ini"; do
	# shellcheck disable=SC2086
	expect 3 predict $part
	says binary.ini
done
head -c 4096 /dev/zero >zeros.ini
expect 3 predict -m gpt-moe-s -M ./zeros.ini -p es-moe
says zeros.ini
"$ESMOE" show machine a100-40g-x4 >whole.ini
sed 's/^hbm_gib *=/hbm_gb =/' whole.ini >misspelt.ini
expect 3 predict -m gpt-moe-s -M ./misspelt.ini -p es-moe
says misspelt.ini: hbm_gb hbm_gib
line=$(grep -n '^hbm_gib' whole.ini | cut -d: -f1)
sed 's/^hbm_gib *=.*/hbm_gib = many/' whole.ini >words.ini
expect 3 predict -m gpt-moe-s -M ./words.ini -p es-moe
says "words.ini:$line" hbm_gib many
sed '/^hbm_gib/d' whole.ini >missing.ini
expect 3 predict -m gpt-moe-s -M ./missing.ini -p es-moe
says missing.ini hbm_gib
sed '1i[gpu' whole.ini >bracket.ini
expect 3 predict -m gpt-moe-s -M ./bracket.ini -p es-moe
says bracket.ini:1
cp whole.ini closed.ini
if [ "$(id -u)" -ne 0 ]; then
	chmod 0 closed.ini
	expect 3 predict -m gpt-moe-s -M ./closed.ini -p es-moe
	says closed.ini
fi

# loads
expect 3 predict $good --routing ./none.csv
says none.csv
for loads in '' 'microbatch,layer,gpu' $'microbatch,layer,gpu,expert,tokens\n0,0,0,0,-1' $'microbatch,layer,gpu,expert,tokens\n0,0,0,0' \
	$'microbatch,layer,gpu,expert,tokens\n0,0,0,0,99999999999999999999' $'microbatch,layer,gpu,expert,tokens\n0,0,0,0,nan'; do
	printf '%s\n' "$loads" >loads.csv
	expect 3 predict $good --routing ./loads.csv
	says loads.csv
done
head -c 4096 /dev/urandom >loads.csv
expect 3 predict $good --routing ./loads.csv
says loads.csv

# traces and figures
for file in none.json empty.ini binary.ini; do
	expect 3 trace info ./$file
	says $file
	expect 3 plot timeline -o x.png ./$file
	expect 3 plot throughput -o x.png ./$file
done
absent x.png
expect 2 trace
expect 2 trace infos x.json
says info
expect 2 plot
expect 2 plot timelime -o x.png y.json
says timeline

# outputs that cannot be written
expect 3 predict $good --trace no/such/folder/t
says no/such/folder
expect 3 predict $good --memory no/such/memory.csv
says 'no/such/memory.csv: cannot be written: No such file or directory'
check "names only what was asked for" test "$(grep -c tmp .err)" -eq 0
expect 3 sweep $good -o no/such/grid.csv
says no/such/grid.csv
expect 3 sweep $good -o folder.ini
says folder.ini
if [ -e /dev/full ]; then
	for arguments in "models" "show model gpt-moe-s" "--help" "predict --help" "predict $good" "compare $good"; do
		checks=$((checks + 1))
		# shellcheck disable=SC2086
		"$ESMOE" $arguments >/dev/full 2>.err
		status=$?
		last="esmoe $arguments >/dev/full"
		[ "$status" -eq 3 ] || complain "$last" "status $status, expected 3"
		says 'No space left'
	done
	expect 3 sweep $good -o /dev/full
	says /dev/full 'No space left'
	expect 3 predict $good --memory /dev/full
	says /dev/full
fi

# what cannot be calibrated is said before anything is measured
expect 2 calibrate -m tiny-moe -M host -p es-moe
says 'chooses its own policies'
expect 3 calibrate -m jamba -M host
says Mamba
expect 3 calibrate -m tiny-moe -M host --workload inference
says inference
expect 3 calibrate -m tiny-moe -M host -o no/such/here.ini
says 'no/such/here.ini: cannot be written: No such file or directory'
expect 3 calibrate -m tiny-moe -M host --ssd no/such
says no/such
expect 5 calibrate -m tiny-moe -M host --device abacus
says abacus

# a disk that fills up: the rows that fit stay whole, and the sweep goes on when there is room
grid="sweep -m gpt-moe-s -M a100-40g-x4 -p es-moe --gpus 1,2,4 --experts 8:64:x2 --sequences 4"
expect 0 $grid -o reference.csv
(
	ulimit -f 1
	trap '' XFSZ
	"$ESMOE" $grid -o full.csv 2>.err
	echo $? >.status
)
check "status 3 on a full disk" test "$(cat .status)" -eq 3
check "one line" test "$(wc -l <.err)" -eq 1
check "whole rows stay" test "$(tail -c 1 full.csv | od -An -c | tr -d ' ')" = '\n'
check "and are those of the whole" cmp -n "$(stat -c %s full.csv)" full.csv reference.csv
expect 0 $grid -o full.csv
check "the sweep goes on" cmp full.csv reference.csv

# a sweep never goes on in a file that is not its own, and leaves it alone
for other in whole.ini binary.ini; do
	cp $other other.csv
	expect 3 $grid -o other.csv
	says other.csv:1
	check "$other is untouched" cmp $other other.csv
done
cp reference.csv other.csv
expect 3 $grid --seed 5 -o other.csv
says other.csv:2 'with these inputs'
expect 3 $grid --set gpu.hbm_gib=41 -o other.csv
expect 3 sweep -m gpt-moe-s -M a100-40g-x4 -p es-moe --gpus 1,2 --experts 8:64:x2 --sequences 4 -o other.csv
check "it is untouched" cmp reference.csv other.csv

# one impossible point is a row, only impossible points are an error
expect 0 sweep $good --top-k 16 --experts 8,32 --sequences 2 -o mixed.csv
check "an invalid row" grep -q '^es-moe,gpt-moe-s,a100-40g-x4,4,8,,,,,,,invalid,' mixed.csv
expect 3 sweep $good --top-k 16 --experts 8,9 -o none.csv
absent none.csv

# experts that do not divide over the GPUs simply work
for experts in 1 3 7 13; do
	expect 0 predict $good --experts $experts --gpus 3 --sequences 2
done

finish
