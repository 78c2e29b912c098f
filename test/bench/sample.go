package main

import (
	"fmt"
	"slices"
	"time"
)

// sample is a series of measured times.
type sample []time.Duration

// quantile returns the value below which the share q of the sample lies, 0 to 1.
// Precondition: there is one.
func (s sample) quantile(q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (s sample) median() time.Duration { return s.quantile(0.5) }

// String gives what one wants to know of a series, in milliseconds.
func (s sample) String() string {
	if len(s) == 0 {
		return "nothing measured"
	}
	return fmt.Sprintf("median %s  p90 %s  min %s  max %s  n %d", ms(s.median()), ms(s.quantile(0.9)), ms(s.quantile(0)), ms(s.quantile(1)), len(s))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
