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
	maxRateOfGuest = 40 // questions per second
	maxBurstGuest  = 200
	// All guests share the first rate. The second is for guests that ask little, so that
	// many guests together cannot keep others from asking.
	sharedRate   = 400
	sharedBurst  = 600
	littleRate   = 200
	littleBurst  = 600
	littleOfOne  = 1 // question per second, on average
	littleAtOnce = 10
)

// manyGuests is how many guests' rates are kept before those that are idle are dropped.
const manyGuests = 1024

// rates bounds how often questions are asked, in all and per guest.
type rates struct {
	shared, little *rate.Limiter

	mu      sync.Mutex
	byGuest map[netip.Addr]guestRates
}

// guestRates are those of one guest: all that it may ask, and the part that counts as
// little.
type guestRates struct{ all, little *rate.Limiter }

func newRates() *rates {
	return &rates{
		shared: rate.NewLimiter(sharedRate, sharedBurst), little: rate.NewLimiter(littleRate, littleBurst),
		byGuest: map[netip.Addr]guestRates{},
	}
}

// allow reports whether the guest may ask now. A guest above its own rate takes nothing
// of the others'.
func (r *rates) allow(guest netip.Addr) bool {
	own := r.of(guest)
	return own.all.Allow() && (own.little.Allow() && r.little.Allow() || r.shared.Allow())
}

func (r *rates) of(guest netip.Addr) guestRates {
	r.mu.Lock()
	defer r.mu.Unlock()
	if own, ok := r.byGuest[guest]; ok {
		return own
	}
	if len(r.byGuest) >= manyGuests {
		r.dropIdle()
	}
	own := guestRates{rate.NewLimiter(maxRateOfGuest, maxBurstGuest), rate.NewLimiter(littleOfOne, littleAtOnce)}
	r.byGuest[guest] = own
	return own
}

// dropIdle drops the rates of guests that have not asked for so long that they are as
// new. Precondition: mu is held.
func (r *rates) dropIdle() {
	for guest, own := range r.byGuest {
		if own.all.Tokens() >= maxBurstGuest && own.little.Tokens() >= littleAtOnce {
			delete(r.byGuest, guest)
		}
	}
}
