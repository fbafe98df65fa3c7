# One panel: loss over steps, a line a run, the first the widest.
set multiplot
set lmargin at screen left[1]
set rmargin at screen right[1]
set bmargin at screen bottom[1]
set tmargin at screen top[1]
set xrange [x_from:x_to]
set yrange [0:y_to]
set ytics 0,y_step
set grid ytics linewidth 0.5 linecolor rgb '#CCCCCC' dashtype solid
set xlabel 'step' offset 0,0.4
set ylabel 'loss (nats)' offset 1,0
plot for [s=1:series] $curves index s-1 using 1:2 with lines linewidth width[s] linecolor rgb colour[s]
unset multiplot
