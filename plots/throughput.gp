# One panel a model: lines of tokens/s over log2(x), and under the axis a band with a cross where memory ran out. Index: panel by panel, policy by policy.
set multiplot
set style data linespoints
do for [p=1:panels] {
	set lmargin at screen left[p]
	set rmargin at screen right[p]
	set bmargin at screen bottom[p]
	set tmargin at screen top[p]
	set xrange [x_from[p]:x_to[p]]
	set yrange [-band[p]:y_to[p]]
	eval 'set xtics ('.ticks[p].')'
	eval sprintf('set ytics 0,%.8g', y_step[p])
	set grid ytics linewidth 0.5 linecolor rgb '#CCCCCC' dashtype solid
	set xzeroaxis linewidth 0.7 linecolor rgb '#444444' dashtype solid
	if ((p - 1) % columns == 0) { set ylabel y_label offset 1,0 } else { unset ylabel }
	if (p + columns > panels) { set xlabel x_label offset 0,0.4 } else { unset xlabel }
	plot for [s=1:series] $lines index (p-1)*series+s-1 using 1:2 linecolor rgb colour[s] linewidth 1.6 pointtype marker[s] pointsize 0.7, \
	     for [s=1:series] $crosses index (p-1)*series+s-1 using 1:2 with points linecolor rgb colour[s] linewidth 1.6 pointtype 2 pointsize 0.6
	unset label
	unset object
	unset arrow
}
unset multiplot
