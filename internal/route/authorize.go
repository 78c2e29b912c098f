package route

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

var (
	errKeyNeeded = errs.New(errs.Unauthenticated, "credentials_required", "this needs an API key of its owner, or a signed link").
			WithHint("give a key as \"X-API-Key: KEY\" or \"Authorization: Bearer KEY\"")
	errPasswordNeeded = errs.New(errs.Unauthenticated, "credentials_required", "this needs a user name and a password").
				WithHint("give them as \"Authorization: Basic\"")
	errLinkEnded = errs.New(errs.Unauthenticated, "link_ended", "this link has ended").
			WithHint("ask for a new one")
)

// Authorize decides whether a caller with these credentials may follow a target.
//
// Errors: errs.Unauthenticated; [ErrUnknown] for a target without a route, so that
// callers without credentials do not learn which VMs exist.
func (s *Service) Authorize(ctx context.Context, t Target, c Credentials) (Grant, error) {
	if t.Auth.Mode == Public {
		return Grant{vmID: t.VMID, routeID: t.RouteID}, nil
	}
	l, opened, ended := s.openLink(t, c.Token, linkKind)
	if opened {
		l.kind = cookieKind
		return Grant{Cookie: l.sign(s.secret, t.VMID), Until: l.until, vmID: t.VMID, routeID: t.RouteID, byLink: true}, nil
	}
	l, returned, endedCookie := s.openLink(t, c.Cookie, cookieKind)
	if returned {
		return Grant{Until: l.until, vmID: t.VMID, routeID: t.RouteID, byLink: true}, nil
	}
	caller, allowed, err := s.allows(ctx, t, c)
	switch {
	case err != nil || allowed:
		return Grant{Caller: caller, vmID: t.VMID, routeID: t.RouteID}, err
	case ended || endedCookie:
		return Grant{}, errLinkEnded
	case t.RouteID == "":
		return Grant{}, ErrUnknown
	case t.Auth.Mode == Basic:
		return Grant{}, errPasswordNeeded
	}
	return Grant{}, errKeyNeeded
}

// openLink reports whether a token or cookie leads to the target now, or ended is
// whether it has done so before.
func (s *Service) openLink(t Target, token string, kind byte) (l link, opened, ended bool) {
	if token == "" {
		return l, false, false
	}
	l, ok := readLink(s.secret, t.VMID, token)
	if !ok || l.kind != kind || l.port != t.Port {
		return l, false, false
	}
	opened = s.Now().Before(l.until) && l.generation == t.generation
	return l, opened, !opened
}

// Watch returns a context of a request that ends with what was granted it: when its key is
// revoked, its link ends, or its route is changed or deleted. stop must be called when the
// request has ended.
func (s *Service) Watch(ctx context.Context, g Grant) (watched context.Context, stop func()) {
	stopKey := func() {}
	if g.Caller != nil {
		ctx, stopKey = s.Keys.Watch(ctx, *g.Caller)
	}
	watched, end := context.WithCancel(ctx)
	w := &follower{grant: g, end: end}
	if g.byLink {
		timer := time.AfterFunc(g.Until.Sub(s.Now()), end)
		w.end = func() { timer.Stop(); end() }
	}
	s.mu.Lock()
	s.followers[w] = struct{}{}
	s.mu.Unlock()
	return watched, func() {
		s.mu.Lock()
		delete(s.followers, w)
		s.mu.Unlock()
		w.end()
		stopKey()
	}
}

// follower is a request in progress.
type follower struct {
	grant Grant
	end   func()
}

// endThose ends the requests in progress whose grants are no longer valid.
func (s *Service) endThose(over func(Grant) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.followers {
		if over(w.grant) {
			w.end()
		}
	}
}

// allows reports whether the key, which is the caller's, or the password is one that the
// target accepts.
func (s *Service) allows(ctx context.Context, t Target, c Credentials) (*access.Principal, bool, error) {
	if t.Auth.Mode == Basic {
		fits, err := s.passwordFits(ctx, t, c)
		return nil, fits, err
	}
	if c.Key == "" {
		return nil, false, nil
	}
	var err error
	caller, known := s.Keys.Known(c.Key, c.From)
	if !known {
		caller, err = s.Keys.Authenticate(ctx, c.Key, c.From)
	}
	if errs.Is(err, errs.Unauthenticated) {
		return nil, false, nil
	}
	return &caller, err == nil && caller.OwnerID == t.OwnerID && caller.Rights.Include(access.Write(access.Exec)), err
}

// passwordFits compares a user name and a password. One that was accepted before costs
// no CPU again.
func (s *Service) passwordFits(ctx context.Context, t Target, c Credentials) (bool, error) {
	a := t.Auth
	if subtle.ConstantTimeCompare([]byte(c.Username), []byte(a.Username)) != 1 || c.Password == "" || len(c.Password) > MaxPassword {
		return false, nil
	}
	mac := hmac.New(sha256.New, s.secret)
	_, _ = mac.Write(append(append([]byte("password\x00"), a.Hash...), c.Password...)) // a hash has always the same length
	sum := digest(mac.Sum(nil))
	if s.passwords.has(sum) {
		return true, nil
	}
	if !s.passwords.begin(t.RouteID) {
		return false, errTooManyPasswords
	}
	defer s.passwords.end(t.RouteID)
	select {
	case s.hashes <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-s.hashes }()
	if bcrypt.CompareHashAndPassword(a.Hash, []byte(c.Password)) != nil {
		return false, nil
	}
	s.passwords.add(sum)
	return true, nil
}

type digest [sha256.Size]byte

// Bounds of what callers with passwords use.
const (
	maxPasswords = 4096 // whose digests are kept
	maxTries     = 8    // of one route, at a time, so that those of others have their turn
)

var errTooManyPasswords = errs.New(errs.TooMany, "too_many_passwords", "cannot check this password: too many others are being checked").
	WithHint("try again").WithRetryAfter(time.Second)

// passwords are the digests of passwords that were accepted, with the hash they fit,
// and how many others are being checked.
type passwords struct {
	mu     sync.Mutex
	by     map[digest]struct{}
	trying map[string]int // by route
}

// begin reports whether another password of a route may be checked, until end.
func (a *passwords) begin(routeID string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.trying[routeID] == maxTries {
		return false
	}
	a.trying[routeID]++
	return true
}

func (a *passwords) end(routeID string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.trying[routeID]--; a.trying[routeID] == 0 {
		delete(a.trying, routeID)
	}
}

func (a *passwords) has(d digest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.by[d]
	return ok
}

func (a *passwords) add(d digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.by) >= maxPasswords {
		clear(a.by)
	}
	a.by[d] = struct{}{}
}
