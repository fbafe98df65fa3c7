# One panel a tier. Boxes: from, to, lower, upper edge, colour; rooms: x, y and the line's run; heights in points.
set multiplot
set border 1
unset ytics
set yrange [0:height]
do for [p=1:panels] {
	set lmargin at screen left[p]
	set rmargin at screen right[p]
	set bmargin at screen bottom[p]
	set tmargin at screen top[p]
	set xrange [0:to[p]]
	if (p == panels) { set xlabel 'GiB' offset 0,0.4 }
	plot $boxes index p-1 using (($1+$2)/2):(($3+$4)/2):1:2:3:4:5 with boxxyerror fill solid noborder linecolor rgb variable, \
	     $rooms index p-1 using 1:2:3:4 with vectors nohead linewidth 1.6 linecolor rgb '#000000'
	unset label
	unset object
	unset arrow
}
unset multiplot
