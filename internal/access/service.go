package access

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/logkey"
)

// Limits on what a caller may send.
const (
	MaxKeyName = 63  // bytes
	maxSecret  = 512 // bytes; longer ones are refused without a lookup
)

// lookupsAtOnce bounds the lookups of keys that did not authenticate before: wrong keys,
// which anyone can send, must leave connections to the database for other work.
const lookupsAtOnce = 4

// maxKnown bounds the keys that are cached in memory.
const maxKnown = 4096

// touchEvery is how often the times of last use are stored.
const touchEvery = time.Minute

// digest is the SHA-256 of a secret.
type digest [sha256.Size]byte

// Service creates keys and authenticates callers by them.
type Service struct {
	store Store
	log   *slog.Logger

	stop    context.CancelFunc
	stopped chan struct{}

	lookups chan struct{} // capacity lookupsAtOnce

	mu      sync.Mutex
	known   map[digest]Key       // keys that authenticated before
	changes uint64               // incremented when a key stops being valid
	used    map[string]time.Time // last uses not stored yet, by key id
}

// New makes a service and starts storing the times of last use in the
// background, until Close.
func New(store Store, log *slog.Logger) *Service { return newService(store, log, touchEvery) }

func newService(store Store, log *slog.Logger, every time.Duration) *Service {
	ctx, stop := context.WithCancel(context.Background())
	s := &Service{
		store: store, log: log, stop: stop, stopped: make(chan struct{}),
		lookups: make(chan struct{}, lookupsAtOnce),
		known:   map[digest]Key{}, used: map[string]time.Time{},
	}
	go s.touchLoop(ctx, every)
	return s
}

// Close stores the times of last use once more and waits for the background work to end.
func (s *Service) Close() error {
	s.stop()
	<-s.stopped
	return nil
}

var errUnknownKey = errs.New(errs.Unauthenticated, "invalid_api_key", "the API key is not valid").
	WithHint("give a key as \"Authorization: Bearer KEY\" or \"X-API-Key: KEY\"; the first one is in admin.key in hatchd's data directory")

// Authenticate returns the principal that a secret belongs to, for a client at an
// address; the zero address is that of a client that is not on the network.
// Errors: errs.Unauthenticated.
//
// Keys are looked up by the secret's SHA-256. The time this takes may reveal how
// much of a hash matches, but an attacker cannot choose secrets by their hash, so
// this does not help; the final comparison takes constant time.
func (s *Service) Authenticate(ctx context.Context, secret string, _ netip.Addr) (Principal, error) {
	if secret == "" || len(secret) > maxSecret {
		return Principal{}, errUnknownKey
	}
	sum := digest(sha256.Sum256([]byte(secret)))
	k, err := s.lookUp(ctx, sum)
	if errs.Is(err, errs.NotFound) {
		return Principal{}, errUnknownKey
	}
	if err != nil {
		return Principal{}, fmt.Errorf("cannot look up an API key: %w", err)
	}
	if subtle.ConstantTimeCompare(k.Hash, sum[:]) != 1 {
		return Principal{}, errUnknownKey
	}
	return s.principal(k), nil
}

// Known authenticates a caller whose key has authenticated before, from memory. Any
// other key may be valid, too.
func (s *Service) Known(secret string, _ netip.Addr) (caller Principal, known bool) {
	if len(secret) > maxSecret {
		return Principal{}, false
	}
	s.mu.Lock()
	k, known := s.known[sha256.Sum256([]byte(secret))]
	s.mu.Unlock()
	if !known {
		return Principal{}, false
	}
	return s.principal(k), true
}

// principal returns the caller that a key authenticates, and notes its use.
func (s *Service) principal(k Key) Principal {
	s.touch(k.ID)
	return Principal{OwnerID: k.OwnerID, Role: RoleAdmin, KeyID: k.ID, KeyName: k.Name, Rights: AllRights}
}

// lookUp returns the key with this hash, from memory if it was used before.
func (s *Service) lookUp(ctx context.Context, sum digest) (Key, error) {
	s.mu.Lock()
	k, ok := s.known[sum]
	before := s.changes
	s.mu.Unlock()
	if ok {
		return k, nil
	}
	select {
	case s.lookups <- struct{}{}:
	case <-ctx.Done():
		return Key{}, ctx.Err()
	}
	k, err := s.store.KeyByHash(ctx, sum[:])
	<-s.lookups
	if err != nil {
		return Key{}, err
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
	return k, nil
}

// forget drops a key that is no longer valid from the cache. The others stay: at an
// address whose tries are used up only they are accepted.
func (s *Service) forget(keyID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	maps.DeleteFunc(s.known, func(_ digest, k Key) bool { return k.ID == keyID })
}

// CreateKey creates a key and returns its secret, which is not stored.
// Errors: errs.Invalid; errs.Conflict with code key_exists.
func (s *Service) CreateKey(ctx context.Context, owner, name string) (Key, string, error) {
	if err := checkKeyName(name); err != nil {
		return Key{}, "", err
	}
	secret := newSecret()
	k := newKey(id.New("key_"), owner, name, secret)
	if err := s.store.InsertKey(ctx, k); err != nil {
		return Key{}, "", err
	}
	return k, secret, nil
}

func checkKeyName(name string) error {
	if name == "" || len(name) > MaxKeyName || !utf8.ValidString(name) ||
		strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errs.InvalidField("name", "want 1 to %d bytes of printable text", MaxKeyName)
	}
	if name == presetName {
		return errs.InvalidField("name", "%q is reserved for the key of HATCH_API_KEY; give another name", name)
	}
	return nil
}

// Keys returns the keys in scope, newest first.
func (s *Service) Keys(ctx context.Context, scope Scope) ([]Key, error) {
	keys, err := s.store.Keys(ctx, scope)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range keys {
		if at, ok := s.used[keys[i].ID]; ok {
			keys[i].LastUsedAt = &at
		}
	}
	return keys, nil
}

// DeleteKey deletes a key; once it returns, the key is not accepted any more. The
// owner's last key cannot be deleted. Errors: errs.NotFound, errs.Conflict with code last_key.
func (s *Service) DeleteKey(ctx context.Context, scope Scope, id string) error {
	if err := s.store.DeleteKey(ctx, scope, id); err != nil {
		return err
	}
	s.forget(id)
	return nil
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

func newKey(id, owner, name, secret string) Key {
	sum := sha256.Sum256([]byte(secret))
	return Key{ID: id, OwnerID: owner, Name: name, Hash: sum[:], CreatedAt: time.Now().UTC().Truncate(time.Microsecond)}
}

// newSecret returns a key with more than 256 random bits. The prefix lets
// scanners for leaked secrets recognize it.
func newSecret() string { return secretPrefix + id.Random(id.Mixed, secretRandom) }

const (
	secretPrefix = "hatch_"
	secretRandom = 43
)

// IsSecret reports whether a text has the form of a key that was made here. Preset keys
// have any.
func IsSecret(text string) bool {
	random, ok := strings.CutPrefix(text, secretPrefix)
	return ok && len(random) == secretRandom && strings.Trim(random, id.Mixed) == ""
}
