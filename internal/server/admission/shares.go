package admission

import "sync"

// Shares bounds an amount that requests use at a time, such as bytes of bodies, in all
// and for each user, so that one user cannot use up what there is.
type Shares struct {
	total, perUser int64

	mu   sync.Mutex
	used int64
	by   map[string]int64 // all of them positive
}

// NewShares returns a free amount. Both limits are positive.
func NewShares(total, perUser int64) *Shares {
	return &Shares{total: total, perUser: perUser, by: map[string]int64{}}
}

// Shortage says why an amount cannot be taken.
type Shortage int

// The shortages.
const (
	Enough   Shortage = iota // there is none
	OfOwn                    // the user's share is used up
	OfShared                 // all users together use too much
)

// Take takes n, which is not negative. Unless there is a shortage, the caller must call
// keep(0) afterwards, and may call it with what it still needs before. keep may be called
// again; it never takes more.
func (s *Shares) Take(user string, n int64) (keep func(left int64), short Shortage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.by[user]+n > s.perUser:
		return nil, OfOwn
	case s.used+n > s.total:
		return nil, OfShared
	}
	s.addLocked(user, n)
	return func(left int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		left = min(left, n)
		s.addLocked(user, left-n)
		n = left
	}, Enough
}

func (s *Shares) addLocked(user string, n int64) {
	s.used += n
	if s.by[user] += n; s.by[user] == 0 {
		delete(s.by, user)
	}
}
