package admission

import "sync"

// Shares bounds an amount that requests use at a time, such as bytes of bodies, in all
// and for each account, so that one account cannot use up what there is.
type Shares struct {
	total, perAccount int64

	mu   sync.Mutex
	used int64
	by   map[string]int64 // all of them positive
}

// NewShares returns a free amount. Both limits are positive.
func NewShares(total, perAccount int64) *Shares {
	return &Shares{total: total, perAccount: perAccount, by: map[string]int64{}}
}

// Shortage says why an amount cannot be taken.
type Shortage int

// The shortages.
const (
	Enough   Shortage = iota // there is none
	OfOwn                    // the account's share is used up
	OfShared                 // all accounts together use too much
)

// Take takes n, which is not negative. Unless there is a shortage, the caller must call
// keep(0) afterwards, and may call it with what it still needs before. keep may be called
// again; it never takes more.
func (s *Shares) Take(account string, n int64) (keep func(left int64), short Shortage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.by[account]+n > s.perAccount:
		return nil, OfOwn
	case s.used+n > s.total:
		return nil, OfShared
	}
	s.addLocked(account, n)
	return func(left int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		left = min(left, n)
		s.addLocked(account, left-n)
		n = left
	}, Enough
}

func (s *Shares) addLocked(account string, n int64) {
	s.used += n
	if s.by[account] += n; s.by[account] == 0 {
		delete(s.by, account)
	}
}
