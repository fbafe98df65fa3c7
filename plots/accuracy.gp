# One square panel: predicted over measured, both logarithmic, with a band around equality; an index a class of points.
set multiplot
set lmargin at screen left[1]
set rmargin at screen right[1]
set bmargin at screen bottom[1]
set tmargin at screen top[1]
set logscale xy
set xrange [from:to]
set yrange [from:to]
set format '%g'
set grid xtics ytics linewidth 0.5 linecolor rgb '#DDDDDD' dashtype solid
set xlabel 'measured (ms)' offset 0,0.4
set ylabel 'predicted (ms)' offset 1,0
set style fill solid noborder
plot $band using 1:($1*(1-share)):($1*(1+share)) with filledcurves linecolor rgb band_colour, \
     $band using 1:1 with lines linewidth 0.7 linecolor rgb '#666666', \
     for [s=1:series] $points index s-1 using 1:2 with points pointtype marker[s] pointsize 0.6 linewidth 1.2 linecolor rgb colour[s]
unset multiplot
