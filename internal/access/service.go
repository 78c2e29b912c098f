package access

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/logkey"
)

// maxSecret bounds secrets in bytes; longer ones are refused without a lookup.
const maxSecret = 512

// lookupsAtOnce bounds the lookups of keys that did not authenticate before: wrong keys,
// which anyone can send, must leave connections to the database for other work.
const lookupsAtOnce = 4

// maxKnown bounds the keys that are cached in memory.
const maxKnown = 4096

// touchEvery is how often the times of last use are stored.
const touchEvery = time.Minute

// digest is the SHA-256 of a secret.
type digest [sha256.Size]byte

// identity is a key and its user.
type identity struct {
	Key
	user User
}

// Service manages users and keys, and authenticates callers by them.
type Service struct {
	store      Store
	belongings Belongings
	verifier   Verifier // of tokens; nil: there are only keys
	log        *slog.Logger

	stop    context.CancelFunc
	stopped chan struct{}

	running      context.Context // of deletions
	endDeletions context.CancelFunc

	lookups chan struct{} // capacity lookupsAtOnce

	mu          sync.Mutex
	closed      bool
	work        sync.WaitGroup        // deletions
	known       map[digest]identity   // keys that authenticated before
	bearers     map[digest]bearer     // tokens that did
	changes     uint64                // incremented when a cached key may be out of date
	revocations uint64                // their number
	revoked     []revocation          // the last ones, the newest last
	watchers    map[*watcher]struct{} // requests in progress
	used        map[string]time.Time  // last uses not stored yet, by key id
}

// New makes a service and starts storing the times of last use in the
// background, until Close.
func New(store Store, log *slog.Logger) *Service { return newService(store, log, touchEvery) }

func newService(store Store, log *slog.Logger, every time.Duration) *Service {
	ctx, stop := context.WithCancel(context.Background())
	running, endDeletions := context.WithCancel(context.Background())
	s := &Service{
		store: store, log: log, running: running, endDeletions: endDeletions, stop: stop, stopped: make(chan struct{}),
		lookups: make(chan struct{}, lookupsAtOnce),
		known:   map[digest]identity{}, bearers: map[digest]bearer{}, watchers: map[*watcher]struct{}{}, used: map[string]time.Time{},
	}
	go s.touchLoop(ctx, every)
	return s
}

// start runs work that EndDeletions ends and waits for, unless that was called already.
func (s *Service) start(work func(ctx context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Go(func() { work(s.running) })
	return true
}

// EndDeletions interrupts the deletions of users, and waits for them to end. The next
// start of hatchd continues them.
func (s *Service) EndDeletions() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.endDeletions()
	s.work.Wait()
	return nil
}

// Close stores the times of last use once more and waits for the background work to end.
func (s *Service) Close() error {
	err := s.EndDeletions()
	s.stop()
	<-s.stopped
	return err
}

var errUnknownKey = errs.New(errs.Unauthenticated, "invalid_api_key", "the API key is not valid").
	WithHint("give a key as \"Authorization: Bearer KEY\" or \"X-API-Key: KEY\"; the first one is in admin.key in hatchd's data directory")

// ErrRevoked refuses a new key of a key that was deleted meanwhile.
var ErrRevoked = errUnknownKey

// Authenticate returns the principal that a secret, a key or a token, belongs to, for a client at an
// address; the zero address is that of a client that is not on the network.
// Errors: errs.Unauthenticated. Only the error for a valid secret says more than that the
// key is not valid.
//
// Keys are looked up by the secret's SHA-256. The time this takes may reveal how
// much of a hash matches, but an attacker cannot choose secrets by their hash, so
// this does not help; the final comparison takes constant time.
func (s *Service) Authenticate(ctx context.Context, secret string, from netip.Addr) (Principal, error) {
	if s.takes(secret) {
		return s.bearerOf(ctx, secret)
	}
	if secret == "" || len(secret) > maxSecret {
		return Principal{}, errUnknownKey
	}
	sum := digest(sha256.Sum256([]byte(secret)))
	k, seen, err := s.lookUp(ctx, sum)
	if errs.Is(err, errs.NotFound) {
		return Principal{}, errUnknownKey
	}
	if err != nil {
		return Principal{}, fmt.Errorf("cannot look up an API key: %w", err)
	}
	if subtle.ConstantTimeCompare(k.Hash, sum[:]) != 1 {
		return Principal{}, errUnknownKey
	}
	if err := k.check(from, time.Now()); err != nil {
		return Principal{}, err
	}
	return s.principal(k, seen), nil
}

// Known authenticates a caller whose key has authenticated before, from memory. Any
// other key may be valid, too.
func (s *Service) Known(secret string, from netip.Addr) (caller Principal, known bool) {
	if s.takes(secret) && len(secret) <= MaxToken {
		return s.knownBearer(secret)
	}
	if len(secret) > maxSecret {
		return Principal{}, false
	}
	s.mu.Lock()
	k, known := s.known[sha256.Sum256([]byte(secret))]
	seen := s.revocations
	s.mu.Unlock()
	if !known || k.check(from, time.Now()) != nil {
		return Principal{}, false
	}
	return s.principal(k, seen), true
}

// check refuses a valid key that cannot be used now, or from an address.
func (k identity) check(from netip.Addr, now time.Time) error {
	switch {
	case k.user.Disabled:
		return errs.New(errs.Unauthenticated, "user_disabled", "the user of this API key is disabled").WithHint("ask an admin")
	case k.expired(now):
		return errs.New(errs.Unauthenticated, "key_expired", "the API key has expired").WithHint("use another key")
	case k.Allowed != nil && !slices.ContainsFunc(k.Allowed, func(n netip.Prefix) bool { return n.Contains(from.Unmap()) }):
		return errs.New(errs.Unauthenticated, "address_not_allowed", "the API key may not be used from this address").
			WithHint("use it from one of its allowed_cidrs")
	}
	return nil
}

// principal returns the caller that a key authenticates, and notes its use.
func (s *Service) principal(k identity, seen uint64) Principal {
	s.touch(k.ID)
	p := Principal{
		OwnerID: k.OwnerID, UserName: k.user.Name, Role: k.user.Role,
		KeyID: k.ID, KeyName: k.Name, Rights: k.Rights & k.user.Role.rights(), seen: seen,
	}
	if k.ExpiresAt != nil {
		p.ExpiresAt = *k.ExpiresAt
	}
	return p
}

// lookUp returns the key with this hash, from memory if it was used before, and how many
// revocations there were before.
func (s *Service) lookUp(ctx context.Context, sum digest) (k identity, seen uint64, err error) {
	s.mu.Lock()
	k, ok := s.known[sum]
	before := s.changes
	seen = s.revocations
	s.mu.Unlock()
	if ok {
		return k, seen, nil
	}
	select {
	case s.lookups <- struct{}{}:
	case <-ctx.Done():
		return identity{}, seen, ctx.Err()
	}
	k.Key, k.user, err = s.store.KeyByHash(ctx, sum[:])
	<-s.lookups
	if err != nil {
		return identity{}, seen, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes == before { // else it may have been deleted since we read it
		if len(s.known) >= maxKnown {
			for some := range s.known { // any one
				delete(s.known, some)
				break
			}
		}
		s.known[sum] = k
	}
	return k, seen, nil
}

func (s *Service) touch(keyID string) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[keyID] = now
}

func (s *Service) touchLoop(ctx context.Context, every time.Duration) {
	defer close(s.stopped)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.storeUses(ctx)
		case <-ctx.Done():
			s.storeUses(context.WithoutCancel(ctx))
			return
		}
	}
}

// touchTimeout bounds one storing of the times of last use.
const touchTimeout = 5 * time.Second

func (s *Service) storeUses(ctx context.Context) {
	s.mu.Lock()
	used := maps.Clone(s.used)
	s.mu.Unlock()
	if len(used) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, touchTimeout)
	defer cancel()
	if err := s.store.TouchKeys(ctx, used); err != nil {
		s.log.Warn("cannot store when API keys were last used", logkey.Error, err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range used {
		if s.used[id].Equal(at) { // not used again since
			delete(s.used, id)
		}
	}
}

// newSecret returns a key with more than 256 random bits. The prefix lets
// scanners for leaked secrets recognize it.
func newSecret() string { return secretPrefix + id.Random(id.Mixed, secretRandom) }

const (
	secretPrefix = "hatch_"
	secretRandom = 43
)

// E2BPrefix begins keys of the form that E2B's clients require.
const E2BPrefix = "e2b_"

const (
	e2bRandom = 40
	hexDigits = "0123456789abcdef"
)

func newE2BSecret() string { return E2BPrefix + id.Random(hexDigits, e2bRandom) }

// IsSecret reports whether a text has the form of a key that was made here. Preset keys
// have any.
func IsSecret(text string) bool {
	if random, ok := strings.CutPrefix(text, E2BPrefix); ok {
		return len(random) == e2bRandom && strings.Trim(random, hexDigits) == ""
	}
	random, ok := strings.CutPrefix(text, secretPrefix)
	return ok && len(random) == secretRandom && strings.Trim(random, id.Mixed) == ""
}
