# SE-MoE, hierarchical all-to-all against a straight one: 80.7 billion parameters on 32 A100 in nodes of eight with an adapter a GPU.
se_moe_exchange() { # RATIO ALL_TO_ALL: milliseconds of a step and of its collectives
	spans -m se-moe-104b.ini -M a100-80g-x8 -p static --gpus 32 --experts 32 --set network.layers=18 --set nic.adapters=8 --set fabric.rails=true \
		--set fabric.leaf_nodes=4 --set fabric.oversubscription="$1" --set policy.all_to_all="$2" |
		awk -F, 'NR > 1 { if ($15 > end) end = $15 } $6 == "all_to_all" || $6 == "all_reduce" { sent += $15 - $14 } END { printf "%.3f %.3f\n", end / 1e6, sent / 1e6 }'
}
se_moe_hierarchical() {
	local ratio straight halves sent kept gains=() saved=()
	for ratio in 2 1 4; do
		read -r straight sent < <(se_moe_exchange "$ratio" linear)
		read -r halves kept < <(se_moe_exchange "$ratio" hierarchical)
		gains+=("$(gain "$straight" "$halves")")
		saved+=("$(awk -v a="$sent" -v b="$kept" 'BEGIN { printf "%.4f\n", 100 * (1 - b / a) }')")
	done
	change "SE-MoE: hierarchical all-to-all, end to end, 32 GPUs" 10.3 "${gains[0]}" "%+.1f %%" "$(printf 'network: 18 layers of 32 experts; a leaf switch for each adapter of four nodes with half as many uplinks: as many uplinks %+.1f %%, a quarter %+.1f %%' \
		"${gains[1]}" "${gains[2]}")"
	change "SE-MoE: of the time of collectives" -15.5 "-${saved[0]}" "%+.1f %%" "$(printf 'as above, chosen with both rows in view: as many uplinks %+.1f %%, a quarter %+.1f %%; what half as many leave is not explained' "$(awk -v a="${saved[1]}" 'BEGIN { print -a }')" "-${saved[2]}")"
}
se_moe_hierarchical
