package main

import (
	"fmt"
	"slices"
	"time"
)

// sample is a series of measured times.
type sample []time.Duration

// quantile returns the value below which the share q of the sample lies, 0 to 1.
// Precondition: the sample is not empty.
func (s sample) quantile(q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (s sample) median() time.Duration { return s.quantile(0.5) }

// String summarizes a series, in milliseconds.
func (s sample) String() string {
	if len(s) == 0 {
		return "nothing measured"
	}
	return fmt.Sprintf("median %s  p90 %s  min %s  max %s  n %d", ms(s.median()), ms(s.quantile(0.9)), ms(s.quantile(0)), ms(s.quantile(1)), len(s))
}

// tail returns the median and the slow end of a series, in milliseconds.
// Precondition: the sample is not empty.
func (s sample) tail() string {
	return fmt.Sprintf("p50 %s  p99 %s  n %d", ms(s.median()), ms(s.quantile(0.99)), len(s))
}

// ratio returns the ratio of two medians.
// Precondition: neither sample is empty.
func ratio(ours, theirs sample) float64 { return float64(ours.median()) / float64(theirs.median()) }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
