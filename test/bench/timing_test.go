package main

import (
	"reflect"
	"testing"
	"time"
)

func TestParseTiming(t *testing.T) {
	for header, want := range map[string][]step{
		"":                         nil,
		"files;dur=1.25,row;dur=2": {{"files", 1250 * time.Microsecond}, {"row", 2 * time.Millisecond}},
		"files;dur=x":              nil,
	} {
		if got := parseTiming(header); !reflect.DeepEqual(got, want) {
			t.Errorf("parseTiming(%q) = %v, want %v", header, got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	s := sample{4, 1, 3, 2}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 4, 1: 4} {
		if got := s.quantile(q); got != want {
			t.Errorf("quantile(%v) = %d, want %d", q, got, want)
		}
	}
}
