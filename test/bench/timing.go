package main

import (
	"strconv"
	"strings"
	"time"
)

// step is one entry of a Server-Timing header.
type step struct {
	name string
	took time.Duration
}

// parseTiming reads a Server-Timing header, such as `files;dur=1.2, row;dur=0.4`.
func parseTiming(header string) []step {
	var steps []step
	for entry := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(entry), ";")
		for param := range strings.SplitSeq(params, ";") {
			value, ok := strings.CutPrefix(strings.TrimSpace(param), "dur=")
			if !ok {
				continue
			}
			if millis, err := strconv.ParseFloat(value, 64); err == nil {
				steps = append(steps, step{name, time.Duration(millis * float64(time.Millisecond))})
			}
		}
	}
	return steps
}
