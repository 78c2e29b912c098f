package access

import (
	"context"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// UserByIdentity implements IdentityStore.
func (m *memory) UserByIdentity(_ context.Context, issuer, subject string) (User, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lookups++
	if u, ok := m.users[m.bound[issuer+" "+subject]]; ok {
		return u, nil
	}
	if m.bound[issuer+" "+subject] != "" {
		return User{}, errs.New(errs.Unauthenticated, "user_deleted", "deleted")
	}
	return User{}, errs.New(errs.NotFound, "user_not_found", "no user")
}

// InsertIdentity implements IdentityStore.
func (m *memory) InsertIdentity(_ context.Context, u User) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bound[u.Issuer+" "+u.Subject] != "" {
		return errs.New(errs.Conflict, "identity_exists", "bound")
	}
	for _, other := range m.users {
		if other.Name == u.Name {
			return errs.New(errs.Conflict, "user_exists", "taken")
		}
	}
	m.users[u.ID] = u
	m.bound[u.Issuer+" "+u.Subject] = u.ID
	return nil
}

// AdmitIdentity implements IdentityStore.
func (m *memory) AdmitIdentity(ctx context.Context, u User) error {
	m.mu.Lock()
	if _, exists := m.users[m.bound[u.Issuer+" "+u.Subject]]; !exists {
		delete(m.bound, u.Issuer+" "+u.Subject)
	}
	m.mu.Unlock()
	return m.InsertIdentity(ctx, u)
}

// people verifies tokens: each is one of these identities.
type people struct {
	by       map[string]Identity
	verified int
}

func (p *people) Verify(_ context.Context, token string) (Identity, error) {
	p.verified++
	if who, ok := p.by[token]; ok {
		return who, nil
	}
	return Identity{}, errs.New(errs.Unauthenticated, "invalid_token", "no token")
}

func (*people) Issuer() string { return "https://id" }

func trusting(t *testing.T) (*Service, *memory, *people) {
	t.Helper()
	m, p := newMemory(), &people{by: map[string]Identity{}}
	s := New(m, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = s.Close() })
	s.Trust(p)
	return s, m, p
}

// person is the identity of a subject, for an hour.
func person(subject, name string, admin bool) Identity {
	return Identity{
		Issuer: "https://id", Subject: subject, Name: name, Admin: admin, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
	}
}

func TestABearerIsAUser(t *testing.T) {
	s, m, p := trusting(t)
	p.by["eyJ.a.1"] = person("1", "Alice@Example.org", false)
	p.by["eyJ.b.1"] = person("2", "alice@example.org", true) // another person with the same name
	p.by["eyJ.c.1"] = person("3", "Not a name!", false)
	names := map[string]bool{}
	for token, admin := range map[string]bool{"eyJ.a.1": false, "eyJ.b.1": true, "eyJ.c.1": false} {
		var first Principal
		for range 2 {
			got, err := s.Authenticate(t.Context(), token, netip.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			if first.OwnerID == "" {
				first = got
			}
			if got.OwnerID != first.OwnerID || !strings.HasPrefix(got.OwnerID, UserPrefix) || got.KeyID != "" || got.Rights.Include(Admin) != admin || got.ExpiresAt.IsZero() {
				t.Errorf("%s: %+v", token, got)
			}
		}
		names[first.UserName] = true
		if known, ok := s.Known(token, netip.Addr{}); !ok || known.OwnerID != first.OwnerID {
			t.Errorf("%s is not known: %+v", token, known)
		}
	}
	if len(names) != 3 || len(m.users) != 3 {
		t.Errorf("the users are called %v", names)
	}
	for _, wrong := range []string{"eyJ.x.y", "eyJ." + strings.Repeat("x", MaxToken) + ".y"} {
		if _, err := s.Authenticate(t.Context(), wrong, netip.Addr{}); !errs.Is(err, errs.Unauthenticated) {
			t.Errorf("a wrong token: %v", err)
		}
	}
}

// The token that was made last gives the user its role, whichever is sent last; an older
// one can do less, but never more.
func TestTheRoleIsTheLastTokens(t *testing.T) {
	s, m, p := trusting(t)
	for i, admin := range []bool{false, true, false, true} { // made one after the other
		who := person("1", "alice", admin)
		who.IssuedAt = who.IssuedAt.Add(time.Duration(i) * time.Second)
		p.by["eyJ.a."+strconv.Itoa(i)] = who
	}
	for _, c := range []struct {
		token        string
		caller, user Role
	}{
		{"1", RoleAdmin, RoleAdmin},
		{"0", RoleMember, RoleAdmin},
		{"1", RoleAdmin, RoleAdmin},
		{"2", RoleMember, RoleMember},
		{"1", RoleMember, RoleMember},
		{"3", RoleAdmin, RoleAdmin},
		{"2", RoleMember, RoleAdmin},
	} {
		got, err := s.Authenticate(t.Context(), "eyJ.a."+c.token, netip.Addr{})
		if err != nil || got.Role != c.caller || got.Rights.Include(Admin) != (c.caller == RoleAdmin) || m.users[got.OwnerID].Role != c.user {
			t.Errorf("%s: %+v, %v; the user is %s", c.token, got, err, m.users[got.OwnerID].Role)
		}
	}
}

// The tokens of a user that was deleted make no other one, until an admin admits it.
func TestADeletedBearerStaysOut(t *testing.T) {
	s, _, p := trusting(t)
	if err := s.Resume(t.Context(), make(deletions, 1)); err != nil {
		t.Fatal(err)
	}
	p.by["eyJ.a.1"] = person("1", "alice", true)
	before, err := s.Authenticate(t.Context(), "eyJ.a.1", netip.Addr{})
	if err == nil {
		err = s.DeleteUser(t.Context(), before.OwnerID, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Authenticate(t.Context(), "eyJ.a.1", netip.Addr{}); !errs.HasCode(err, "user_deleted") {
		t.Fatalf("with a token that is still valid: %v", err)
	}
	if _, err := s.AdmitUser(t.Context(), "alice", "1\n"); !errs.HasCode(err, "invalid_oidc_subject") {
		t.Errorf("a subject with a line end: %v", err)
	}
	u, err := s.AdmitUser(t.Context(), "alice", "1")
	if err != nil {
		t.Fatal(err)
	}
	after, err := s.Authenticate(t.Context(), "eyJ.a.1", netip.Addr{})
	if err != nil || after.OwnerID != u.ID || after.OwnerID == before.OwnerID || after.Role != RoleAdmin {
		t.Errorf("%+v, %v", after, err)
	}
}

func TestADisabledBearerIsRefused(t *testing.T) {
	s, _, p := trusting(t)
	p.by["eyJ.a.1"] = person("1", "alice", false)
	got, err := s.Authenticate(t.Context(), "eyJ.a.1", netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	stream, stop := s.Watch(t.Context(), got)
	defer stop()
	if _, err := s.UpdateUser(t.Context(), got.OwnerID, func(u *User) error { u.Disabled = true; return nil }); err != nil {
		t.Fatal(err)
	}
	<-stream.Done()
	if _, known := s.Known("eyJ.a.1", netip.Addr{}); known {
		t.Error("it is still known")
	}
	if _, err := s.Authenticate(t.Context(), "eyJ.a.1", netip.Addr{}); !errs.HasCode(err, "user_disabled") {
		t.Errorf("got %v", err)
	}
}

func TestStreamsEndWithTheToken(t *testing.T) {
	s, _, p := trusting(t)
	who := person("1", "alice", false)
	who.ExpiresAt = time.Now().Add(20 * time.Millisecond)
	p.by["eyJ.a.1"] = who
	got, err := s.Authenticate(t.Context(), "eyJ.a.1", netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	stream, stop := s.Watch(t.Context(), got)
	defer stop()
	<-stream.Done()
	if _, known := s.Known("eyJ.a.1", netip.Addr{}); known {
		t.Error("it is still known")
	}
}

func TestVerifiedTokensAreFew(t *testing.T) {
	s, _, _ := trusting(t)
	for i := range maxKnown + 10 {
		s.rememberBearer(strconv.Itoa(i), bearer{Principal: Principal{ExpiresAt: time.Now().Add(time.Hour)}})
	}
	if len(s.bearers) > maxKnown {
		t.Errorf("%d are kept", len(s.bearers))
	}
}

// What was revoked before a process of this host came does not end it.
func TestLocalProcessesAreNotRevoked(t *testing.T) {
	s, m, _ := trusting(t)
	m.users[AdminID] = User{ID: AdminID, Name: "admin", Role: RoleAdmin}
	if _, err := s.UpdateUser(t.Context(), AdminID, func(u *User) error { u.Name = "root"; return nil }); err != nil {
		t.Fatal(err)
	}
	watched, stop := s.Watch(t.Context(), s.Local(0))
	defer stop()
	if watched.Err() != nil {
		t.Error("it has ended")
	}
}
