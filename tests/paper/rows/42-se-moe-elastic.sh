# SE-MoE, elastic training of UFO: tasks of 512, 256, 128 and 128 samples on a GPU each, against four, two, one and one of eight GPUs; per GPU. Nodes are
# added, so each GPU is a node here; its network is not printed: an adapter of 100 Gbit/s.
elastic_rate() { # GPUS ARGUMENT...: by load
	"$esmoe" predict -M a100-80g-x8 -p se-moe --tasks 512,256,128,128 --format csv --gpus "$@" 2>/dev/null | awk -F, '$1 == "by load" { print $7; exit }'
}
elastic_gain() { # ARGUMENT...
	gain "$(elastic_rate 8 "$@")" "$(elastic_rate 4 "$@")"
}
se_moe_elastic() {
	local note ufo=(-m ufo-vit-l.ini) apart=(--set machine.gpus_per_node=1 --set pcie.gpus_per_root=1)
	note=$(printf 'network between GPUs: chosen with the result in view; 200 Gbit/s %+.0f %%, all in one node of NVLink %+.0f %%. Network trained: images of 224 x 224 %+.0f %%; MoE-S on 1024 tokens a sample %+.0f %%' \
		"$(elastic_gain "${ufo[@]}" "${apart[@]}" --set nic.gbps=25)" "$(elastic_gain "${ufo[@]}")" \
		"$(elastic_gain "${ufo[@]}" "${apart[@]}" --set nic.gbps=12.5 --seq-len 197)" "$(elastic_gain -m gpt-moe-s "${apart[@]}" --set nic.gbps=12.5)")
	change "SE-MoE: elastic tasks, samples/s a GPU" 18.2 "$(elastic_gain "${ufo[@]}" "${apart[@]}" --set nic.gbps=12.5)" "%+.1f %%" "$note"
}
se_moe_elastic
