//go:build linux && amd64

package qemu

import (
	"math"
	"sync"
	"time"
)

// Under TCG a guest's time stamp counter is the host's, but a guest kernel
// cannot measure its frequency: it counts it against an emulated timer, finds
// the numbers too unsteady as soon as the host is busy, and then waits for a
// timer interrupt that never comes. So it is told the frequency.

// readTSC returns the processor's time stamp counter.
func readTSC() uint64

// clock is one reading of the counter and the time together.
type clock struct {
	at    time.Time
	ticks uint64
}

// startClock reads both as closely together as it can: of several readings,
// the one that took the least time.
func startClock() clock {
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

// clockSpan is how far two readings must lie apart to tell the frequency
// within a few millionths.
const clockSpan = 100 * time.Millisecond

// kHz returns a function that measures the counter's frequency from the
// clock's start until its first call, which waits if that is too short.
func (c clock) kHz() func() uint64 {
	return sync.OnceValue(func() uint64 {
		<-time.After(time.Until(c.at.Add(clockSpan)))
		end := startClock()
		return uint64(math.Round(float64(end.ticks-c.ticks) / end.at.Sub(c.at).Seconds() / 1000))
	})
}
