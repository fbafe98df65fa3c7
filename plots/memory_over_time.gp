# A panel a GPU: the staircase of GiB over ms as an area, and the capacity.
set multiplot
set grid ytics linewidth 0.5 linecolor rgb '#CCCCCC' dashtype solid
set xrange [from:to]
set yrange [0:most]
set ytics 0,step
set format x ''
do for [p=1:panels] {
	set lmargin at screen left[p]
	set rmargin at screen right[p]
	set bmargin at screen bottom[p]
	set tmargin at screen top[p]
	if (p == (panels + 1) / 2) { set ylabel 'GiB' offset 1,0 } else { unset ylabel }
	if (p == panels) { set format x '%g'; set xlabel 'time (ms)' offset 0,0.4 }
	if (capacity > 0) { set arrow 100000 from from,capacity to to,capacity nohead linewidth 1.2 linecolor rgb '#000000' }
	plot $steps index p-1 using 1:2 with fillsteps fillcolor rgb colour fill solid noborder
	unset label
	unset object
	unset arrow
}
unset multiplot
