# What every panel looks like before its script says more.
set datafile separator "\t"
set datafile commentschars ''
set border 3 linewidth 0.7 linecolor rgb '#444444'
set tics nomirror out scale 0.6 font ',8' textcolor rgb '#000000'
unset key
set style fill solid noborder
