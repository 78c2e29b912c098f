package access

import (
	"bytes"
	"cmp"
	"context"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store for one test. It counts look-ups.
type memory struct {
	mu       sync.Mutex
	keys     map[string]Key
	users    map[string]User
	bound    map[string]string // users' ids by issuer and subject
	owned    Owned
	lookups  int
	touched  chan map[string]time.Time
	onLookup func() // called during a look-up, after the reading
}

func newMemory() *memory {
	return &memory{keys: map[string]Key{}, users: map[string]User{}, bound: map[string]string{}, touched: make(chan map[string]time.Time, 100)}
}

func (m *memory) InsertUser(_ context.Context, u User) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, exists := m.users[u.ID]; !exists {
		m.users[u.ID] = u
	}
	return nil
}

func (m *memory) User(_ context.Context, idOrName string) (User, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, u := range m.users {
		if u.ID == idOrName || u.Name == idOrName {
			return u, nil
		}
	}
	return User{}, errs.New(errs.NotFound, "user_not_found", "no user")
}

func (m *memory) Users(context.Context) ([]User, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.users)), nil
}

func (m *memory) UpdateUser(ctx context.Context, id string, change func(*User) error) (User, error) {
	u, err := m.User(ctx, id)
	if err == nil {
		err = change(&u)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.users[id] = u
	}
	return u, err
}

func (m *memory) RestoreAdmin(context.Context) (bool, error) { return false, nil }

func (m *memory) BeginDeletion(ctx context.Context, id string, check func(Owned) error) (User, error) {
	if err := check(m.owned); err != nil {
		return User{}, err
	}
	return m.UpdateUser(ctx, id, func(u *User) error { u.Disabled, u.Deleting = true, true; return nil })
}

func (m *memory) EndDeletion(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.users, id)
	return nil
}

func (m *memory) InsertKey(_ context.Context, k Key) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[k.ID] = k
	return nil
}

func (m *memory) ReplaceKey(ctx context.Context, k Key) error { return m.InsertKey(ctx, k) }

func (m *memory) KeyByHash(_ context.Context, hash []byte) (Key, User, error) {
	m.mu.Lock()
	m.lookups++
	var found *Key
	for _, k := range m.keys {
		if bytes.Equal(k.Hash, hash) {
			found = &k
		}
	}
	m.mu.Unlock()
	if m.onLookup != nil {
		m.onLookup()
	}
	if found == nil {
		return Key{}, User{}, errs.New(errs.NotFound, "key_not_found", "no key")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return *found, m.users[found.OwnerID], nil
}

func (m *memory) Keys(_ context.Context, scope Scope) ([]Key, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []Key
	for _, k := range m.keys {
		if scope.Sees(k.OwnerID) {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

func (m *memory) DeleteKey(_ context.Context, _ Scope, id, _ string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.keys) == 1 {
		return errs.New(errs.Conflict, "last_key", "the last one")
	}
	delete(m.keys, id)
	return nil
}

func (m *memory) TouchKeys(_ context.Context, used map[string]time.Time) error {
	m.touched <- used
	return nil
}

// admin is the first admin, without a key.
var admin = Principal{OwnerID: AdminID, Role: RoleAdmin, Rights: AllRights}

func start(t *testing.T, store Store) *Service {
	t.Helper()
	s := New(store, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustBootstrap(t *testing.T, s *Service, dir, preset string) (string, bool) {
	t.Helper()
	key, created, err := s.Bootstrap(t.Context(), dir, preset)
	if err != nil {
		t.Fatal(err)
	}
	return key, created
}

func mustAuthenticate(t *testing.T, s *Service, secret string) Principal {
	t.Helper()
	p, err := s.Authenticate(t.Context(), secret, netip.Addr{})
	if err != nil {
		t.Fatalf("Authenticate: %v", err)
	}
	return p
}

func refused(t *testing.T, s *Service, secret string) {
	t.Helper()
	if p, err := s.Authenticate(t.Context(), secret, netip.Addr{}); !errs.Is(err, errs.Unauthenticated) || p != (Principal{}) {
		t.Errorf("Authenticate(%.20q…) = %+v, %v, want Unauthenticated", secret, p, err)
	}
}

func TestFirstStartCreatesAKey(t *testing.T) {
	store, dir := newMemory(), t.TempDir()
	s := start(t, store)
	key, created := mustBootstrap(t, s, dir, "")
	if !created || !regexp.MustCompile(`^hatch_[A-Za-z0-9]{43}$`).MatchString(key) {
		t.Fatalf("key %q, created %v", key, created)
	}
	path := filepath.Join(dir, KeyFile)
	if text, err := os.ReadFile(path); err != nil || string(text) != key+"\n" {
		t.Errorf("file: %q, %v", text, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode: %v, %v", st.Mode(), err)
	}
	if p := mustAuthenticate(t, s, key); p.OwnerID != AdminID {
		t.Errorf("principal %+v", p)
	}
	for _, k := range store.keys {
		if bytes.Contains(k.Hash, []byte(key)) || len(k.Hash) != 32 {
			t.Error("the store has more than a hash")
		}
	}
	if again, created := mustBootstrap(t, s, dir, ""); created || again != "" {
		t.Errorf("the second start made %q", again)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestLostFileIsNotWrittenAgain(t *testing.T) {
	var log bytes.Buffer
	s := New(newMemory(), slog.New(slog.NewTextHandler(&log, nil)))
	defer func() { _ = s.Close() }()
	dir := t.TempDir()
	key, _ := mustBootstrap(t, s, dir, "")
	if err := os.Remove(filepath.Join(dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	if again, created := mustBootstrap(t, s, dir, ""); created || again != "" {
		t.Errorf("made %q", again)
	}
	if _, err := os.Stat(filepath.Join(dir, KeyFile)); !os.IsNotExist(err) {
		t.Errorf("file: %v, want %v", err, fs.ErrNotExist)
	}
	mustAuthenticate(t, s, key)
	if !strings.Contains(log.String(), "HATCH_API_KEY") || strings.Contains(log.String(), key) {
		t.Errorf("log: %s", &log)
	}
}

// TestForeignKeyFileIsKept: it may be of another database, or of a start that ended too
// early.
func TestForeignKeyFileIsKept(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, KeyFile), []byte("hatch_never_stored\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for round, preset := range []string{"", "a-preset-key-of-old"} {
		s := start(t, newMemory())
		key, created := mustBootstrap(t, s, dir, preset)
		want := cmp.Or(preset, key)
		if text, err := readKeyFile(filepath.Join(dir, KeyFile)); created != (preset == "") || err != nil || text != want {
			t.Errorf("file %q, key %q: %v", text, key, err)
		}
		aside, err := filepath.Glob(filepath.Join(dir, KeyFile+".*"))
		if err != nil || len(aside) != round+1 {
			t.Fatalf("set aside: %v, %v", aside, err)
		}
		if st, err := os.Stat(aside[0]); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		if text, err := readKeyFile(aside[0]); err != nil || text != "hatch_never_stored" {
			t.Errorf("kept %q, %v", text, err)
		}
	}
}

func TestPreset(t *testing.T) {
	s, dir := start(t, newMemory()), t.TempDir()
	fileHas := func(want string) {
		t.Helper()
		if got, err := readKeyFile(filepath.Join(dir, KeyFile)); err != nil || got != want {
			t.Errorf("file has %q (%v), want %q", got, err, want)
		}
	}
	const first, second = "a preset key of old", "the-second-preset-key"
	if _, _, err := s.Bootstrap(t.Context(), dir, first); err == nil || !strings.Contains(err.Error(), "HATCH_API_KEY") {
		t.Errorf("spaces: %v", err)
	}
	if _, _, err := s.Bootstrap(t.Context(), dir, "short"); err == nil || !strings.Contains(err.Error(), "HATCH_API_KEY") || strings.Contains(err.Error(), "short;") {
		t.Errorf("short: %v", err)
	}
	old := strings.ReplaceAll(first, " ", "-")
	if key, created := mustBootstrap(t, s, dir, old); created || key != "" {
		t.Errorf("made %q beside the preset", key)
	}
	mustAuthenticate(t, s, old)
	fileHas(old)
	mustBootstrap(t, s, dir, second)
	mustAuthenticate(t, s, second)
	refused(t, s, old)
	fileHas(second)
	mustBootstrap(t, s, dir, "") // without a preset nothing changes
	mustAuthenticate(t, s, second)
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("a preset that another replaced was kept: %v", entries)
	}
}

func TestPresetKeepsAValidFile(t *testing.T) {
	s, dir := start(t, newMemory()), t.TempDir()
	key, _ := mustBootstrap(t, s, dir, "")
	mustBootstrap(t, s, dir, "the-second-preset-key")
	mustAuthenticate(t, s, key)
	mustAuthenticate(t, s, "the-second-preset-key")
	if got, _ := readKeyFile(filepath.Join(dir, KeyFile)); got != key {
		t.Errorf("file has %q", got)
	}
}

func TestAuthenticateRefuses(t *testing.T) {
	s := start(t, newMemory())
	key, _ := mustBootstrap(t, s, t.TempDir(), "")
	for _, secret := range []string{"", "x", key + "x", key[:len(key)-1], strings.ToUpper(key), strings.Repeat("x", 1<<20), "\x00"} {
		refused(t, s, secret)
	}
}

func TestAuthenticateAsksTheStoreOnce(t *testing.T) {
	store := newMemory()
	s := start(t, store)
	key, _ := mustBootstrap(t, s, t.TempDir(), "")
	for range 100 {
		mustAuthenticate(t, s, key)
	}
	if store.lookups != 1 {
		t.Errorf("%d look-ups", store.lookups)
	}
}

func TestDeletedKeyIsRefused(t *testing.T) {
	s := start(t, newMemory())
	secretOfAdmin, _ := mustBootstrap(t, s, t.TempDir(), "")
	k, secret, err := s.CreateKey(t.Context(), admin, NewKey{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	mustAuthenticate(t, s, secret)
	if !IsSecret(secret) || IsSecret(secret[1:]) || IsSecret(secret+"x") || IsSecret(secret[:48]+"-") {
		t.Error("the form of a key is not recognized")
	}
	if err := s.DeleteKey(t.Context(), admin, k.ID); err != nil {
		t.Fatal(err)
	}
	refused(t, s, secret)
	p := mustAuthenticate(t, s, secretOfAdmin)
	if err := s.DeleteKey(t.Context(), admin, p.KeyID); !errs.HasCode(err, "last_key") {
		t.Errorf("the last key: %v", err)
	}
	mustAuthenticate(t, s, secretOfAdmin)
}

// A lookup that read the key before it was deleted must not cache it afterwards.
func TestDeleteDuringLookUp(t *testing.T) {
	store := newMemory()
	s := start(t, store)
	mustBootstrap(t, s, t.TempDir(), "")
	k, secret, err := s.CreateKey(t.Context(), admin, NewKey{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	store.onLookup = func() {
		store.onLookup = nil
		if err := s.DeleteKey(t.Context(), admin, k.ID); err != nil {
			t.Error(err)
		}
	}
	mustAuthenticate(t, s, secret) // it was valid when the lookup began
	refused(t, s, secret)
}

func TestCreateKeyChecksTheName(t *testing.T) {
	s := start(t, newMemory())
	mustBootstrap(t, s, t.TempDir(), "")
	for _, name := range []string{"", strings.Repeat("x", 64), "a\nb", "a\x00", "\xff", presetName} {
		if _, _, err := s.CreateKey(t.Context(), admin, NewKey{Name: name}); !errs.HasCode(err, "invalid_name") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestLastUse(t *testing.T) {
	store := newMemory()
	s := newService(store, slog.New(slog.DiscardHandler), time.Millisecond)
	key, _ := mustBootstrap(t, s, t.TempDir(), "")
	before := time.Now().Truncate(time.Microsecond)
	p := mustAuthenticate(t, s, key)
	if at := (<-store.touched)[p.KeyID]; at.Before(before) {
		t.Errorf("stored %v, want %v or later", at, before)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCloseStoresTheLastUse(t *testing.T) {
	store := newMemory()
	s := New(store, slog.New(slog.DiscardHandler))
	key, _ := mustBootstrap(t, s, t.TempDir(), "")
	p := mustAuthenticate(t, s, key)
	keys, err := s.Keys(t.Context(), Owner(AdminID))
	if err != nil || !slices.ContainsFunc(keys, func(k Key) bool { return k.ID == p.KeyID && k.LastUsedAt != nil }) {
		t.Errorf("keys %+v, %v: a use just now is not shown", keys, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := (<-store.touched)[p.KeyID]; !ok {
		t.Error("the last use was lost")
	}
}
