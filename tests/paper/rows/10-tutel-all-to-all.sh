# Tutel, table of the all-to-all's share of an MoE layer: d_model = d_ff = 4096, 2 experts a GPU, 64K tokens a GPU, before overlap and hierarchy.
tutel_share() { # GPUS PAPER_MS PAPER_SHARE PRECISION...
	local gpus=$1 ms=$2 share=$3 layer exchanged
	shift 3
	read -r layer exchanged < <(moe_layer -m tutel-layer.ini -M ndm-a100-v4.ini -p tutel --gpus "$gpus" --experts $((2 * gpus)) --sequences 64 \
		--set network.d_model=4096 --set network.d_ff=4096 --set policy.checkpoint=none --set policy.pipeline_degree=1 \
		--set policy.all_to_all=linear "$@")
	echo "$layer $(percent "$exchanged" "$layer")"
}
tutel_all_to_all() {
	local gpus ms share ours fast fast_share layer crowded note
	while read -r gpus ms share; do
		read -r layer ours < <(tutel_share "$gpus" "$ms" "$share")
		read -r fast fast_share < <(tutel_share "$gpus" "$ms" "$share" --set gpu.gemm_efficiency=0.8)
		note=$(printf 'how fast GEMMs on TF32 are: half of the data sheet, by the 372 ms printed for the rest of the layer at 16 GPUs; with 80 %% %.1f %%. All-to-alls alone: %.0f ms for %.0f ms' \
			"$fast_share" "$(product "$layer" "$ours")" "$(product "$ms" "$share")")
		row "Tutel: all-to-all of a layer, $gpus GPUs" "$share" "$ours" "%.1f %%" "$note"
		note=$(printf 'as above: with 80 %% %.0f ms' "$fast")
		if [ "$gpus" -gt 128 ]; then
			for crowded in 2 4; do
				read -r fast _ < <(tutel_share "$gpus" "$ms" "$share" --set fabric.leaf_nodes=16 --set nic.adapters=1 --set fabric.oversubscription="$crowded")
				note+=$(printf '. With leaf switches of 16 nodes and uplinks for one in %d %.0f ms' "$crowded" "$fast")
			done
		fi
		row "Tutel: the layer, $gpus GPUs" "$ms" "$layer" "%.0f ms" "$note"
	done <<-EOT
		16 560.9 33.7
		64 698.9 46.3
		256 866.4 56.7
	EOT
}
tutel_all_to_all
