# Boxes: from, to, lower, upper edge, colour. Texts: x, y, words, colour. One index a panel; heights in points.
set multiplot
set xlabel 'time (ms)' offset 0,0.4
unset ytics
set border 1
set yrange [0:height]
do for [p=1:panels] {
	set lmargin at screen left[p]
	set rmargin at screen right[p]
	set bmargin at screen bottom[p]
	set tmargin at screen top[p]
	set xrange [from[p]:to[p]]
	plot $boxes index p-1 using (($1+$2)/2):(($3+$4)/2):1:2:3:4:5 with boxxyerror fill solid noborder linecolor rgb variable, \
	     $texts index p-1 using 1:2:3:4 with labels font ',7.5' center textcolor rgb variable, \
	     $small_texts index p-1 using 1:2:3:4 with labels font ',5' center textcolor rgb variable
	unset label
	unset object
	unset arrow
}
unset multiplot
