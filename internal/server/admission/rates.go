package admission

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Class is a kind of request that has a rate limit of its own.
type Class string

// The classes.
const (
	Reads   Class = "read"
	Writes  Class = "write"
	Creates Class = "create"
)

// Rate is how often a key may send requests of one class: many at once, and then
// steadily. The zero value is no limit.
type Rate struct {
	PerSecond float64
	Burst     int // ≥ 1 if there is a limit
}

// Window returns how long an unused key needs to get its whole burst.
func (r Rate) Window() time.Duration {
	return time.Duration(float64(r.Burst) / r.PerSecond * float64(time.Second))
}

// maxRated bounds the keys that are counted, of all classes together.
const maxRated = 8192

// Rates counts the requests of each key.
type Rates struct {
	limits map[Class]Rate

	mu sync.Mutex
	by map[rated]*rate.Limiter
}

type rated struct {
	key   string
	class Class
}

// NewRates returns a count. Classes without a rate have no limit.
func NewRates(limits map[Class]Rate) *Rates {
	return &Rates{limits: limits, by: map[rated]*rate.Limiter{}}
}

// Standing is how a key stands with its limit after a request.
type Standing struct {
	Limit Rate // the zero value: there is none, and nothing else counts
	Left  int  // requests that may follow at once
	Full  time.Duration
	Wait  time.Duration // before the request may be sent again; 0 if it is allowed
}

// Count counts a request of a key. One that is refused costs nothing.
func (r *Rates) Count(key string, class Class) Standing {
	limit := r.limits[class]
	if limit.Burst == 0 {
		return Standing{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now, entry := time.Now(), rated{key, class}
	l := r.by[entry]
	if l == nil {
		makeRoom(r.by, maxRated, now) // one that has its whole burst again is as good as none
		l = rate.NewLimiter(rate.Limit(limit.PerSecond), limit.Burst)
		r.by[entry] = l
	}
	standing := Standing{Limit: limit, Wait: wait(l, now)}
	if standing.Wait == 0 {
		l.AllowN(now, 1)
	}
	left := max(0, l.TokensAt(now))
	standing.Left = int(left)
	standing.Full = time.Duration((float64(limit.Burst) - left) / limit.PerSecond * float64(time.Second))
	return standing
}
