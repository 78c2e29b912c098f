package access

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
)

// Bounds on what a caller may send.
const (
	MaxKeyName = 63  // bytes
	maxSecret  = 512 // bytes; longer ones are refused unread
)

// maxKnown bounds how many keys are held in memory.
const maxKnown = 4096

// touchEvery is how often the times of last use are stored.
const touchEvery = time.Minute

// digest is the SHA-256 of a secret.
type digest [sha256.Size]byte

// Service makes keys and recognises them.
type Service struct {
	store Store
	log   *slog.Logger

	stop    context.CancelFunc
	stopped chan struct{}

	mu      sync.Mutex
	known   map[digest]Key       // keys that authenticated before
	changes uint64               // goes up whenever a key stops being good
	used    map[string]time.Time // last uses not stored yet, by key id
}

// New makes a service and starts storing the times of last use in the
// background, until Close.
func New(store Store, log *slog.Logger) *Service { return newService(store, log, touchEvery) }

func newService(store Store, log *slog.Logger, every time.Duration) *Service {
	ctx, stop := context.WithCancel(context.Background())
	s := &Service{
		store: store, log: log, stop: stop, stopped: make(chan struct{}),
		known: map[digest]Key{}, used: map[string]time.Time{},
	}
	go s.touchLoop(ctx, every)
	return s
}

// Close stores the times of last use once more and waits for the background work.
func (s *Service) Close() error {
	s.stop()
	<-s.stopped
	return nil
}

var errUnknownKey = errs.New(errs.Unauthenticated, "invalid_api_key", "the API key is not valid").
	WithHint("give a key as \"Authorization: Bearer KEY\" or \"X-API-Key: KEY\"; the first one is in admin.key in hatchd's data directory")

// Authenticate tells whose key secret is. Errors: errs.Unauthenticated.
//
// The look-up goes by the secret's SHA-256. Its time may tell how much of a
// hash matches, but nobody can choose secrets by their hash, so that is worth
// nothing; the last comparison takes the same time whatever it compares.
func (s *Service) Authenticate(ctx context.Context, secret string) (Principal, error) {
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
	s.touch(k.ID)
	return Principal{OwnerID: k.OwnerID, KeyID: k.ID, KeyName: k.Name}, nil
}

// lookUp asks the store for a key that is seen for the first time.
func (s *Service) lookUp(ctx context.Context, sum digest) (Key, error) {
	s.mu.Lock()
	k, ok := s.known[sum]
	before := s.changes
	s.mu.Unlock()
	if ok {
		return k, nil
	}
	k, err := s.store.KeyByHash(ctx, sum[:])
	if err != nil {
		return Key{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes == before { // else it may have been deleted since we read it
		if len(s.known) >= maxKnown {
			clear(s.known)
		}
		s.known[sum] = k
	}
	return k, nil
}

// forgetKnown makes every key be looked up again.
func (s *Service) forgetKnown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	clear(s.known)
}

// CreateKey makes a key and returns its secret, which is not kept.
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
		return errs.InvalidField("name", "1 to %d bytes of printable text can be given", MaxKeyName)
	}
	if name == presetName {
		return errs.InvalidField("name", "%q is kept for the key of HATCH_API_KEY; give another name", name)
	}
	return nil
}

// Keys returns the owner's keys, newest first.
func (s *Service) Keys(ctx context.Context, owner string) ([]Key, error) {
	keys, err := s.store.Keys(ctx, owner)
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

// DeleteKey deletes a key; once it returns, the key opens nothing. The owner's
// last key stays. Errors: errs.NotFound, errs.Conflict with code last_key.
func (s *Service) DeleteKey(ctx context.Context, owner, id string) error {
	if err := s.store.DeleteKey(ctx, owner, id); err != nil {
		return err
	}
	s.forgetKnown()
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

// touchPatience bounds one storing of the times of last use.
const touchPatience = 5 * time.Second

func (s *Service) storeUses(ctx context.Context) {
	s.mu.Lock()
	used := maps.Clone(s.used)
	s.mu.Unlock()
	if len(used) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, touchPatience)
	defer cancel()
	if err := s.store.TouchKeys(ctx, used); err != nil {
		s.log.Warn("cannot store when API keys were last used", "err", err)
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

// newSecret returns a key with more than 256 bits of chance. The prefix lets
// scanners for leaked secrets know it.
func newSecret() string { return "hatch_" + id.Random(id.Mixed, 43) }
