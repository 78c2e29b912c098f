package main

import (
	"fmt"
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
		t.Run(header, func(t *testing.T) {
			if got := parseTiming(header); !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestQuantile(t *testing.T) {
	s := sample{4, 1, 3, 2}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 4, 1: 4} {
		t.Run(fmt.Sprint(q), func(t *testing.T) {
			if got := s.quantile(q); got != want {
				t.Errorf("got %d, want %d", got, want)
			}
		})
	}
}
