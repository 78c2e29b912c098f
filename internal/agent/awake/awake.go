// Package awake lets programs in the guest keep it awake: for the time that one of them
// asks for, the host does not take the guest for idle.
//
// A program connects to a Unix socket, writes one line, and reads one. Any user may: a
// program of any user can also compute, which keeps a guest awake as well. The package
// keeps the latest end that was asked for; internal/agent reports it when the host asks.
// Start at [Keeper.Serve]; [Ask] is the other end.
package awake

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Command is the word that begins a request:
//
//	keep-awake DURATION   → ok SECONDS, how much longer by this and all earlier requests
//	keep-awake 0          → ok 0; ends them all
//	keep-awake            → ok SECONDS, how much longer
//
// Any other line, and a duration beyond wire.MaxKeepAwake, is answered by: error TEXT.
const Command = "keep-awake"

// Keeper knows how long the guest is kept awake. It is lost when the guest reboots.
type Keeper struct {
	now func() moment

	mu  sync.Mutex
	end moment // zero: the guest is not kept awake
}

// moment is a time by two clocks. By the time of day, a guest that has slept knows that
// time has passed; but that clock may be set, and must not make the time left longer than
// it was asked for.
type moment struct {
	day time.Time
	up  time.Duration // since some start; stands still while the guest sleeps
}

// NewKeeper returns a Keeper by the guest's clocks.
func NewKeeper() *Keeper {
	start := time.Now()
	return &Keeper{now: func() moment {
		now := time.Now()
		return moment{now.Round(0), now.Sub(start)}
	}}
}

// Left returns how much longer the guest is kept awake.
func (k *Keeper) Left() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.left(k.now())
}

// left is Left at a moment. The caller holds the mutex.
func (k *Keeper) left(now moment) time.Duration {
	return max(0, min(k.end.day.Sub(now.day), k.end.up-now.up))
}

// keep keeps the guest awake for d from now on, and not for less than before; 0 ends that.
func (k *Keeper) keep(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	switch {
	case d == 0:
		k.end = moment{}
	case d > k.left(now):
		k.end = moment{now.day.Add(d), now.up + d}
	}
}

// answer does what a line asks for, and returns the line of the reply.
func (k *Keeper) answer(line string) string {
	words := strings.Fields(line)
	if len(words) == 0 || len(words) > 2 || words[0] != Command {
		return fmt.Sprintf("error the request must be a line %s DURATION, such as %s 10m", Command, Command)
	}
	if len(words) == 2 {
		d, err := ParseDuration(words[1])
		if err != nil {
			return "error " + err.Error()
		}
		k.keep(d)
	}
	return fmt.Sprintf("ok %d", (k.Left()+time.Second-1)/time.Second)
}

// ParseDuration parses a duration such as 90s, 10m or 1h30m; a number without a unit is in
// seconds.
func ParseDuration(text string) (time.Duration, error) {
	if _, err := strconv.ParseUint(text, 10, 64); err == nil {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > wire.MaxKeepAwake {
		return 0, fmt.Errorf("the duration is %.32q; it must be from 0 to %s, such as 90s, 10m or 1h30m", text, wire.MaxKeepAwake)
	}
	return d, nil
}
