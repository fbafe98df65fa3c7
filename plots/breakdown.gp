# Stacked boxes: from, to, lower, upper edge, colour; heights in points.
set lmargin at screen left[1]
set rmargin at screen right[1]
set bmargin at screen bottom[1]
set tmargin at screen top[1]
set border 1
set xlabel 'time in the step (ms)' offset 0,0.4
unset ytics
set xrange [0:to]
set yrange [0:height]
plot $boxes using (($1+$2)/2):(($3+$4)/2):1:2:3:4:5 with boxxyerror fill solid noborder linecolor rgb variable
