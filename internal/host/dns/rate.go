package dns

import (
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

// Each question that hatchd asks leaves an entry in the host's table of connections,
// for up to two minutes, however soon it is answered. A full table takes the host off
// the network, so that questions have a rate, too.
const (
	maxRate        = 600  // questions per second
	maxBurst       = 1200 // questions
	maxRateOfGuest = 40
	maxBurstGuest  = 200
)

// manyGuests is how many guests' rates are kept before those that are idle are dropped.
const manyGuests = 1024

// rates bounds how often questions are asked, in all and per guest.
type rates struct {
	all *rate.Limiter

	mu      sync.Mutex
	byGuest map[netip.Addr]*rate.Limiter
}

func newRates() *rates {
	return &rates{all: rate.NewLimiter(maxRate, maxBurst), byGuest: map[netip.Addr]*rate.Limiter{}}
}

// allow reports whether the guest may ask now. A guest above its own rate takes nothing
// of the others'.
func (r *rates) allow(guest netip.Addr) bool { return r.of(guest).Allow() && r.all.Allow() }

func (r *rates) of(guest netip.Addr) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	own := r.byGuest[guest]
	if own != nil {
		return own
	}
	if len(r.byGuest) >= manyGuests {
		r.dropIdle()
	}
	own = rate.NewLimiter(maxRateOfGuest, maxBurstGuest)
	r.byGuest[guest] = own
	return own
}

// dropIdle drops the rates of guests that have not asked for so long that they are as
// new. Precondition: mu is held.
func (r *rates) dropIdle() {
	for guest, own := range r.byGuest {
		if own.Tokens() >= maxBurstGuest {
			delete(r.byGuest, guest)
		}
	}
}
