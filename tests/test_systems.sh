#!/usr/bin/env bash
# The predictions beside the papers of other systems: the committed table is what the program prints.
set -u
here=$ESMOE_SOURCE/tests/paper
made=$("$here/systems" "$ESMOE") || { echo "FAIL: the table could not be made"; exit 1; }
diff <(echo "$made") "$here/systems.md" || { echo "FAIL: tests/paper/systems.md is not what tests/paper/systems prints"; exit 1; }
