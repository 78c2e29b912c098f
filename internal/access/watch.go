package access

import (
	"context"
	"time"
)

// watcher is a request in progress.
type watcher struct {
	keyID, userID string
	end           context.CancelFunc
}

// revocation is the end of a key, or of all keys of a user.
type revocation struct {
	keyID, userID string // one of them
}

func (r revocation) of(keyID, userID string) bool {
	return r.keyID != "" && r.keyID == keyID || r.userID != "" && r.userID == userID
}

// maxRevocations bounds the revocations that are remembered, for requests that were
// authenticated before and are not watched yet.
const maxRevocations = 1024

type watcherKey struct{}

// Watch returns a context of a caller's request that ends when its key is revoked or
// expires, or its user is disabled. stop must be called when the request has ended.
func (s *Service) Watch(ctx context.Context, p Principal) (watched context.Context, stop func()) {
	watched, end := context.WithCancel(ctx)
	if !p.ExpiresAt.IsZero() {
		var stopTimer context.CancelFunc
		watched, stopTimer = context.WithDeadline(watched, p.ExpiresAt)
		endAll := end
		end = func() { stopTimer(); endAll() }
	}
	w := &watcher{keyID: p.KeyID, userID: p.OwnerID, end: end}
	watched = context.WithValue(watched, watcherKey{}, w)
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	revoked := s.revokedSinceLocked(p)
	s.mu.Unlock()
	if revoked {
		end()
	}
	return watched, func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
		end()
	}
}

// revokedSinceLocked reports whether the caller's key may have been revoked since it was
// authenticated. Precondition: s.mu is held.
func (s *Service) revokedSinceLocked(p Principal) bool {
	since := s.revocations - p.seen
	if since > uint64(len(s.revoked)) {
		return true
	}
	for _, r := range s.revoked[uint64(len(s.revoked))-since:] {
		if r.of(p.KeyID, p.OwnerID) {
			return true
		}
	}
	return false
}

// revoke drops keys that are no longer valid, or have changed, from the cache, and ends the
// requests that were made with them, but for the one of ctx. The other keys stay cached:
// at an address whose tries are used up only they are accepted.
func (s *Service) revoke(ctx context.Context, r revocation) {
	own, _ := ctx.Value(watcherKey{}).(*watcher)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetLocked(r)
	s.revocations++
	s.revoked = append(s.revoked, r)
	if len(s.revoked) > maxRevocations {
		s.revoked = s.revoked[1:]
	}
	for w := range s.watchers {
		if w != own && r.of(w.keyID, w.userID) {
			w.end()
		}
	}
}

// forgetLocked drops keys that have changed from the cache. Precondition: s.mu is held.
func (s *Service) forgetLocked(r revocation) {
	s.changes++
	for sum, k := range s.known {
		if r.of(k.ID, k.OwnerID) {
			delete(s.known, sum)
		}
	}
}

// expired reports whether a key's time has passed.
func (k Key) expired(now time.Time) bool { return k.ExpiresAt != nil && !now.Before(*k.ExpiresAt) }
