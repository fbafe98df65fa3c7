# Staircases of GiB over ms, one index a GPU, and the capacity.
set lmargin at screen left[1]
set rmargin at screen right[1]
set bmargin at screen bottom[1]
set tmargin at screen top[1]
set xlabel 'time (ms)' offset 0,0.4
set ylabel 'HBM in use (GiB)' offset 1,0
set grid ytics linewidth 0.5 linecolor rgb '#CCCCCC' dashtype solid
set xrange [0:to]
set yrange [0:most]
if (capacity > 0) { set arrow from 0,capacity to to,capacity nohead linewidth 1.2 dashtype 2 linecolor rgb '#000000' }
plot for [i=1:lines] $steps index i-1 using 1:2 with steps linecolor rgb colour[i] linewidth 1.4
