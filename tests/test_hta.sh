#!/bin/sh
# Holistic Trace Analysis itself reads our traces, a made one and a predicted one, and must count what esmoe trace info counts. It is
# installed once into the build directory; without Python's venv or a package index the test is skipped (77).
set -eu

version=0.5.0
build=$(dirname "$ESMOE")
venv=$build/hta-$version
python=$venv/bin/python

if [ ! -e "$venv/complete" ]; then
	rm -rf "$venv"
	if ! { python3 -m venv "$venv" && timeout 240 "$python" -m pip install -q "HolisticTraceAnalysis==$version"; }; then
		rm -rf "$venv"
		echo "Holistic Trace Analysis cannot be installed here"
		exit 77
	fi
	touch "$venv/complete"
fi

traces=$(mktemp -d)
trap 'rm -rf "$traces"' EXIT
mkdir "$traces/made" "$traces/predicted"
"$build/tests/hta_trace" "$traces/made/trace"
"$ESMOE" predict -m gpt-moe-l -M a100-40g-x4 -p es-moe --experts 16 --trace "$traces/predicted/trace" >/dev/null
for folder in made predicted; do
	"$ESMOE" trace info --format json "$traces/$folder" >"$traces/$folder.info.json"
	"$ESMOE" trace convert "$traces/$folder" -o "$traces/$folder.csv"
	HTA_DISABLE_NS_ROUNDING=1 "$python" "$(dirname "$0")/hta_check.py" "$traces/$folder" "$traces/$folder.info.json" "$traces/$folder.csv"
done
