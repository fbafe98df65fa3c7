# SE-MoE, elastic training of UFO: tasks of 512, 256, 128 and 128 samples on a GPU each, against four, two, one and one of eight GPUs; per GPU.
elastic_gain() { # ARGUMENT...
	local one eight
	one=$("$esmoe" predict -M a100-80g-x8 -p se-moe --gpus 4 --tasks 512,256,128,128 --format csv "$@" 2>/dev/null | awk -F, '$1 == "by load" { print $7; exit }')
	eight=$("$esmoe" predict -M a100-80g-x8 -p se-moe --gpus 8 --tasks 512,256,128,128 --format csv "$@" 2>/dev/null | awk -F, '$1 == "by load" { print $7; exit }')
	gain "$eight" "$one"
}
se_moe_elastic() {
	local note
	note=$(printf 'network and samples: not printed; a step of which 150 samples'"'"' worth is the same for every batch would give 18 %%. Here MoE-S on 1024 tokens a sample; on 64 %.0f %%, on 4 %.0f %%' \
		"$(elastic_gain -m gpt-moe-s --seq-len 64)" "$(elastic_gain -m gpt-moe-s --seq-len 4)")
	row "SE-MoE: elastic tasks, samples/s a GPU" +18.2 "$(elastic_gain -m gpt-moe-s)" "%+.1f %%" "$note"
}
se_moe_elastic
