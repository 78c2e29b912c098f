//go:build linux && amd64

package qemu

import (
	"math"
	"sync"
	"time"
)

// Under TCG a guest reads the host's time stamp counter, but its kernel cannot
// measure the frequency: it calibrates the counter against an emulated timer, whose
// ticks are too irregular on a busy host, and then waits for a timer interrupt that
// never comes. So the driver passes the frequency on the kernel's command line.

// readTSC returns the processor's time stamp counter.
func readTSC() uint64

// clock is the counter and the time at one moment.
type clock struct {
	at    time.Time
	ticks uint64
}

// readClock reads the counter and the time. Of several readings it returns the one
// that took the least time.
func readClock() clock {
	var best clock
	shortest := uint64(math.MaxUint64)
	for range 20 {
		before := readTSC()
		at := time.Now()
		after := readTSC()
		if after-before < shortest {
			shortest, best = after-before, clock{at, before + (after-before)/2}
		}
	}
	return best
}

// minSpan is the time between two readings that gives the frequency to within a few
// parts per million.
const minSpan = 100 * time.Millisecond

// kHz returns a function whose first call measures the counter's frequency between
// c and now; it waits until minSpan has passed since c.
func (c clock) kHz() func() uint64 {
	return sync.OnceValue(func() uint64 {
		<-time.After(time.Until(c.at.Add(minSpan)))
		end := readClock()
		return uint64(math.Round(float64(end.ticks-c.ticks) / end.at.Sub(c.at).Seconds() / 1000))
	})
}
