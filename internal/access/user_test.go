package access

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// deletions receives the ids of users whose objects are deleted.
type deletions chan string

func (d deletions) DeleteOf(_ context.Context, userID string) error {
	d <- userID
	return nil
}

// A deletion that the end of hatchd has interrupted is continued by the next start.
func TestInterruptedDeletionsGoOn(t *testing.T) {
	store := newMemory()
	for _, id := range []string{AdminID, "usr_gone", "usr_stays"} {
		if err := store.InsertUser(t.Context(), User{ID: id, Name: id, Role: RoleMember, Deleting: id == "usr_gone"}); err != nil {
			t.Fatal(err)
		}
	}
	s := New(store, slog.New(slog.DiscardHandler))
	of := make(deletions, 3)
	if err := s.Resume(t.Context(), of); err != nil {
		t.Fatal(err)
	}
	if id := <-of; id != "usr_gone" {
		t.Errorf("the objects of %s were deleted", id)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.User(t.Context(), "usr_gone"); !errs.Is(err, errs.NotFound) || len(of) > 0 {
		t.Errorf("left: %v, and %d more were deleted", err, len(of))
	}
}

func TestUsersWithObjectsStay(t *testing.T) {
	for name, c := range map[string]struct {
		owned   Owned
		cascade bool
		code    string
	}{
		"nothing":          {Owned{}, false, ""},
		"keys":             {Owned{Keys: 2}, false, ""},
		"a VM":             {Owned{VMs: 1, Keys: 1}, false, "user_owns_objects"},
		"a VM, too":        {Owned{VMs: 1, Keys: 1}, true, ""},
		"images in use":    {Owned{Images: 1, UsedHere: 1}, true, "images_in_use"},
		"images of others": {Owned{Images: 1}, true, ""},
	} {
		if err := c.owned.mayGo(c.cascade); (err == nil) != (c.code == "") || err != nil && !errs.HasCode(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A request whose key is revoked between its authentication and Watch ends at once.
func TestWatchOfARevokedKey(t *testing.T) {
	s := start(t, newMemory())
	mustBootstrap(t, s, t.TempDir(), "")
	make := func(name string) (Key, string) {
		k, secret, err := s.CreateKey(t.Context(), admin, NewKey{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return k, secret
	}
	k, secret := make("ci")
	_, other := make("other")
	p, bystander := mustAuthenticate(t, s, secret), mustAuthenticate(t, s, other)
	before, stop := s.Watch(t.Context(), p)
	defer stop()
	if err := s.DeleteKey(t.Context(), admin, k.ID); err != nil {
		t.Fatal(err)
	}
	after, stop := s.Watch(t.Context(), p)
	defer stop()
	untouched, stop := s.Watch(t.Context(), bystander)
	defer stop()
	if before.Err() == nil || after.Err() == nil || untouched.Err() != nil {
		t.Errorf("the contexts have %v, %v, %v", before.Err(), after.Err(), untouched.Err())
	}
}

// A request that revokes its own key gets its answer.
func TestOwnRequestGoesOn(t *testing.T) {
	s := start(t, newMemory())
	mustBootstrap(t, s, t.TempDir(), "")
	k, secret, err := s.CreateKey(t.Context(), admin, NewKey{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	p := mustAuthenticate(t, s, secret)
	own, stop := s.Watch(t.Context(), p)
	defer stop()
	other, stop := s.Watch(t.Context(), p)
	defer stop()
	if err := s.DeleteKey(own, p, k.ID); err != nil || own.Err() != nil || other.Err() == nil {
		t.Errorf("%v; the contexts have %v, %v", err, own.Err(), other.Err())
	}
}

// Keys in memory are refused, too, once they have expired, from other networks, or with a
// role that has changed.
func TestKnownKeysObeyTheirLimits(t *testing.T) {
	store := newMemory()
	s := start(t, store)
	mustBootstrap(t, s, t.TempDir(), "")
	soon := time.Now().Add(50 * time.Millisecond)
	home, away := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("198.51.100.1")
	_, secret, err := s.CreateKey(t.Context(), admin, NewKey{Name: "ci", ExpiresAt: &soon, Allowed: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Authenticate(t.Context(), secret, home)
	if err != nil || !p.Rights.Include(Admin) {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, from := range []netip.Addr{away, {}} {
		if _, known := s.Known(secret, from); known {
			t.Errorf("known from %s", from)
		}
		if _, err := s.Authenticate(t.Context(), secret, from); !errs.HasCode(err, "address_not_allowed") {
			t.Errorf("from %s: %v", from, err)
		}
	}
	if _, err := s.UpdateUser(t.Context(), AdminID, func(u *User) error { u.Role = RoleMember; return nil }); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Authenticate(t.Context(), secret, home); err != nil || p.Rights.Include(Admin) || p.Rights.Include(Read(Users)) || !p.Rights.Include(Write(VMs)) {
		t.Errorf("as a member: %+v, %v", p, err)
	}
	watched, stop := s.Watch(t.Context(), p)
	defer stop()
	<-watched.Done()
	if _, err := s.Authenticate(t.Context(), secret, home); time.Now().After(soon) && !errs.HasCode(err, "key_expired") {
		t.Errorf("expired: %v", err)
	}
}
