package access

import (
	"context"
	"crypto/sha256"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
)

// Identity is what a token says of its bearer, once it is verified.
type Identity struct {
	Issuer, Subject string // together they are one person, for ever
	Name            string // that the issuer vouches for, such as a verified e-mail address; "" for none
	Admin           bool   // the token says that the bearer is an admin
	IssuedAt        time.Time
	ExpiresAt       time.Time
}

// role returns the role that the token gives.
func (i Identity) role() Role {
	if i.Admin {
		return RoleAdmin
	}
	return RoleMember
}

// Verifier verifies tokens of a trusted issuer.
type Verifier interface {
	// Verify returns who a token's bearer is. Errors: errs.Unauthenticated;
	// errs.Unavailable if the issuer cannot be asked.
	Verify(ctx context.Context, token string) (Identity, error)
	// Issuer returns the issuer whose tokens are verified.
	Issuer() string
}

// MaxToken bounds tokens in bytes; longer ones are refused before they are read.
const MaxToken = 16 << 10

// bearerAge is how long a token that was verified is accepted without being verified
// again: so long the issuer's keys may be used after they were withdrawn.
const bearerAge = time.Minute

// bearer is the caller of a token that was verified.
type bearer struct {
	Principal
	until   time.Time
	changes uint64 // of the service, before the user was read
}

// Trust makes the service accept tokens that v verifies. It must be called before any
// request.
func (s *Service) Trust(v Verifier) { s.verifier = v }

// takes reports whether a secret is a token for the verifier: it has the form of a signed
// one (JWT), which no key has that was made here.
func (s *Service) takes(secret string) bool {
	return s.verifier != nil && strings.HasPrefix(secret, "eyJ") && strings.Count(secret, ".") == 2
}

// knownBearer returns the caller of a token that was verified not long ago, unless a key
// or a user was revoked since.
func (s *Service) knownBearer(token string) (Principal, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, known := s.bearers[sha256.Sum256([]byte(token))]
	return b.Principal, known && b.changes == s.changes && time.Now().Before(b.until)
}

// bearerAttempts bounds how often a token is looked at whose user changes meanwhile.
const bearerAttempts = 3

// bearerOf returns the caller that a token authenticates, and makes its user if it has
// none yet. The role of the token that was made last becomes the user's, so that keys of
// the user have it, too; an older token can do no more than both roles allow.
func (s *Service) bearerOf(ctx context.Context, token string) (Principal, error) {
	if len(token) > MaxToken {
		return Principal{}, errUnknownKey
	}
	who, err := s.verifier.Verify(ctx, token)
	if err != nil {
		return Principal{}, err
	}
	for range bearerAttempts {
		s.mu.Lock()
		seen, changes := s.revocations, s.changes
		s.mu.Unlock()
		u, err := s.userOf(ctx, who)
		if err != nil {
			return Principal{}, err
		}
		if u.Disabled {
			return Principal{}, errs.New(errs.Unauthenticated, "user_disabled", "the user of this token is disabled").WithHint("ask an admin")
		}
		if who.IssuedAt.After(u.RoleAt) {
			_, err := s.UpdateUser(ctx, u.ID, who.giveRole)
			if err == nil {
				continue // with the user as it is now
			}
			if !errs.HasCode(err, "last_admin") { // whose keys stay an admin's, but not this request
				return Principal{}, err
			}
		}
		role := who.role()
		if u.Role == RoleMember {
			role = RoleMember
		}
		p := Principal{
			OwnerID: u.ID, UserName: u.Name, Role: role, Rights: role.rights(), ExpiresAt: who.ExpiresAt, seen: seen,
		}
		s.rememberBearer(token, bearer{Principal: p, changes: changes})
		return p, nil
	}
	return Principal{}, errs.New(errs.Unavailable, "user_changing", "cannot authenticate the token: its user is being changed").WithHint("try again")
}

// giveRole gives the token's role to its user, unless a later token has given it one.
func (i Identity) giveRole(u *User) error {
	if i.IssuedAt.After(u.RoleAt) {
		u.Role, u.RoleAt = i.role(), i.IssuedAt
	}
	return nil
}

func (s *Service) rememberBearer(token string, b bearer) {
	b.until = time.Now().Add(bearerAge)
	if b.ExpiresAt.Before(b.until) {
		b.until = b.ExpiresAt
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.bearers) >= maxKnown {
		for some := range s.bearers { // any one
			delete(s.bearers, some)
			break
		}
	}
	s.bearers[sha256.Sum256([]byte(token))] = b
}

// userOf returns the user that an identity is bound to, and makes it if there is none.
func (s *Service) userOf(ctx context.Context, who Identity) (User, error) {
	u, err := s.store.UserByIdentity(ctx, who.Issuer, who.Subject)
	if !errs.Is(err, errs.NotFound) {
		return u, err
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	for _, name := range who.names() {
		u = User{
			ID: id.New(UserPrefix), Name: name, Role: who.role(), CreatedAt: now, UpdatedAt: now,
			Issuer: who.Issuer, Subject: who.Subject, RoleAt: who.IssuedAt,
		}
		if u.check() != nil {
			continue
		}
		err = s.store.InsertIdentity(ctx, u)
		switch {
		case errs.HasCode(err, "identity_exists"): // another request has made it
			return s.store.UserByIdentity(ctx, who.Issuer, who.Subject)
		case !errs.HasCode(err, "user_exists"):
			return u, err
		}
	}
	return User{}, err
}

// names returns names for a new user, the best first. A name that another user has is not
// taken over: only issuer and subject tell who a bearer is.
func (i Identity) names() []string {
	chance := id.Random(id.Lower, 8)
	name := strings.ToLower(i.Name)
	return []string{name, name + "-" + chance, "oidc-" + chance}
}

// MaxSubject bounds the issuer's name of a user, in bytes, as OpenID Connect does.
const MaxSubject = 255

// AdmitUser creates the user that the bearer of the trusted issuer's tokens for a subject
// is, also if an earlier one was deleted. Its first token gives it its role.
// Errors: errs.Invalid; errs.Conflict with code user_exists or identity_exists.
func (s *Service) AdmitUser(ctx context.Context, name, subject string) (User, error) {
	switch {
	case s.verifier == nil:
		return User{}, errs.InvalidField("oidc_subject", "cannot be given: this server trusts no issuer").WithHint("set HATCH_OIDC_ISSUER")
	case len(subject) > MaxSubject || !printable(subject):
		return User{}, errs.InvalidField("oidc_subject", "want up to %d bytes of printable text", MaxSubject)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	u := User{ID: id.New(UserPrefix), Name: name, Role: RoleMember, CreatedAt: now, UpdatedAt: now, Issuer: s.verifier.Issuer(), Subject: subject}
	if err := u.check(); err != nil {
		return User{}, err
	}
	return u, s.store.AdmitIdentity(ctx, u)
}
