# Tutel, adaptive parallelism (section 4.1): what a static choice loses against the best for each load, "7.39 to 27.76 %", on average over settings. Here one
# layer, top-2, two to eight times as many GPUs as experts; the static choices are replicas (EP+DP) and slices (EP+MP).
tutel_split() { # NAME SPLIT
	"$esmoe" show policy tutel | sed "s/^expert_split = .*/expert_split = $2/" >"$scratch/$1.ini"
}
tutel_parallelism() { # GEMM_EFFICIENCY TOKENS...
	local efficiency=$1
	shift
	local split width tokens gpus models='' policies=''
	for split in adaptive data model; do
		tutel_split "split-$split" "$split"
		policies+="${policies:+,}$scratch/split-$split.ini"
	done
	for width in 1024 2048 4096; do
		for tokens; do
			sed "s/^d_model = .*/d_model = $width/; s/^d_ff = .*/d_ff = $((4 * width))/; s/^seq_len = .*/seq_len = 512/" tutel-layer.ini |
				sed "s/^sequences = .*/sequences = $((tokens / 512))/" >"$scratch/split-$width-$tokens.ini"
			models+="${models:+,}$scratch/split-$width-$tokens.ini"
		done
	done
	for gpus in 16 64; do
		"$esmoe" compare -m "$models" -M ndm-a100-v4.ini -p "$policies" --gpus "$gpus" --experts "$((gpus / 8)),$((gpus / 4)),$((gpus / 2))" --steps 1 \
			--format csv --set policy.checkpoint=none --set gpu.gemm_efficiency="$efficiency" 2>/dev/null | sed 1d
	done | awk -F, '
		{ step[$1, $2 "," $4 "," $5] = $7 }
		$1 == "split-adaptive" { setting[$2 "," $4 "," $5] }
		END {
			for (s in setting) {
				n++
				data += 1 - step["split-adaptive", s] / step["split-data", s]
				model += 1 - step["split-adaptive", s] / step["split-model", s]
			}
			printf "%.4f %.4f %d\n", 100 * data / n, 100 * model / n, n
		}'
}
tutel_parallelisms() {
	local data model n more_data more_model fast_data fast_model
	read -r data model n < <(tutel_parallelism 0.5 512 2048 8192 32768)
	read -r more_data more_model _ < <(tutel_parallelism 0.5 2048 8192 32768 131072)
	read -r fast_data fast_model _ < <(tutel_parallelism 0.8 512 2048 8192 32768)
	change "Tutel: what the better static parallelism loses, here replicas (EP+DP)" -7.39 "-$data" "%+.1f %%" \
		"$(printf 'settings: %d, 512 to 32K tokens a GPU; the paper'"'"'s are not all printed. 2K to 128K: -%.1f %%. GEMMs: half of the data sheet as above; with 80 %% -%.1f %%' \
			"$n" "$more_data" "$fast_data")"
	change "the worse, here slices (EP+MP)" -27.76 "-$model" "%+.1f %%" "$(printf 'as above: -%.1f %%; -%.1f %%' "$more_model" "$fast_model")"
}
tutel_parallelisms
