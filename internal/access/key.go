package access

import (
	"context"
	"crypto/sha256"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
)

// Limits on what a caller may send.
const (
	MaxKeyName = 63   // bytes
	MaxNote    = 1024 // bytes
	MaxAllowed = 32   // networks
)

// shownPrefix is how many characters of a secret are stored to recognize it by. What
// remains has 128 random bits or more.
const shownPrefix = 12

// NewKey is a request for a key. Fields without a value are those of the caller's key.
type NewKey struct {
	UserID    string // or name; "" for the caller
	E2B       bool   // its secret has the form that E2B's clients require
	Name      string
	Note      string
	Rights    []Right        // nil for all of the caller's key
	ExpiresAt *time.Time     // nil for that of the caller's key
	Allowed   []netip.Prefix // networks of clients; nil for those of the caller's key
}

// CreateKey creates a key, and returns its secret, which is not stored. A key can do no
// more, no longer and from no other networks than the key that it is made with.
// Errors: errs.Invalid; errs.Forbidden; errs.Conflict with code key_exists.
func (s *Service) CreateKey(ctx context.Context, caller Principal, r NewKey) (Key, string, error) {
	if err := r.check(time.Now()); err != nil {
		return Key{}, "", err
	}
	user, err := s.store.User(ctx, caller.OwnerID)
	if err != nil {
		return Key{}, "", err
	}
	if r.UserID != "" && r.UserID != user.ID && r.UserID != user.Name {
		if user, err = s.otherUser(ctx, caller, r.UserID); err != nil {
			return Key{}, "", err
		}
	}
	if user.Deleting {
		return Key{}, "", errDeleting
	}
	by, err := s.keyOf(ctx, caller)
	if err != nil {
		return Key{}, "", err
	}
	secret := newSecret()
	if r.E2B {
		secret = newE2BSecret()
	}
	k := newKey(id.New("key_"), user.ID, r.Name, secret)
	k.Note, k.MadeBy = r.Note, by.ID
	if k.Rights, err = r.rightsFor(user, caller.Rights); err != nil {
		return Key{}, "", err
	}
	if err := k.limit(r, by); err != nil {
		return Key{}, "", err
	}
	return k, secret, s.store.InsertKey(ctx, k)
}

func (r NewKey) check(now time.Time) error {
	if r.Name == "" || len(r.Name) > MaxKeyName || !printable(r.Name) {
		return errs.InvalidField("name", "want 1 to %d bytes of printable text", MaxKeyName)
	}
	switch {
	case r.Name == presetName:
		return errs.InvalidField("name", "%q is reserved for the key of HATCH_API_KEY; give another name", r.Name)
	case len(r.Note) > MaxNote || !printable(r.Note):
		return errs.InvalidField("note", "want up to %d bytes of printable text", MaxNote)
	case r.Rights != nil && len(r.Rights) == 0:
		return errs.InvalidField("scopes", "is empty; leave it out for all scopes of the key that makes this request")
	case r.ExpiresAt != nil && !r.ExpiresAt.After(now):
		return errs.InvalidField("expires_at", "%s has passed already", r.ExpiresAt.UTC().Format(time.RFC3339))
	case len(r.Allowed) > MaxAllowed || r.Allowed != nil && len(r.Allowed) == 0:
		return errs.InvalidField("allowed_cidrs", "want 1 to %d networks; leave it out for all", MaxAllowed)
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// otherUser returns the user that an admin makes a key for.
func (s *Service) otherUser(ctx context.Context, caller Principal, idOrName string) (User, error) {
	if !caller.Rights.Include(Admin) {
		return User{}, errs.New(errs.Forbidden, "forbidden", "cannot make a key of another user with this API key: it lacks the scope %q", Admin).
			WithField("user_id").WithHint("leave user_id out to make a key of your own")
	}
	u, err := s.store.User(ctx, idOrName)
	if errs.Is(err, errs.NotFound) {
		return User{}, errs.InvalidField("user_id", "there is no user %q", errs.Brief(idOrName)).WithHint("GET /users lists them").WithCause(err)
	}
	return u, err
}

// keyOf returns the key that a caller has authenticated with, the zero one if there is
// none.
func (s *Service) keyOf(ctx context.Context, caller Principal) (Key, error) {
	if caller.KeyID == "" {
		return Key{}, nil
	}
	keys, err := s.store.Keys(ctx, Owner(caller.OwnerID))
	if err != nil {
		return Key{}, err
	}
	at := slices.IndexFunc(keys, func(k Key) bool { return k.ID == caller.KeyID })
	if at < 0 {
		return Key{}, errUnknownKey
	}
	return keys[at], nil
}

// rightsFor returns the rights of a new key of a user.
func (r NewKey) rightsFor(u User, callers Rights) (Rights, error) {
	most := callers & u.Role.rights()
	if r.Rights == nil {
		return most, nil
	}
	for _, right := range r.Rights {
		switch {
		case !u.Role.rights().Include(right):
			return 0, errs.InvalidField("scopes", "a key of a user with the role %s cannot have %q", u.Role, right)
		case !callers.Include(right):
			return 0, errs.New(errs.Forbidden, "forbidden", "cannot make a key with the scope %q: the key that makes it lacks it", right).
				WithField("scopes").WithHint("give scopes that your key has: GET /me shows them")
		}
	}
	return RightsOf(r.Rights...), nil
}

// limit gives a key its end and its networks, which are within those of the key that it is
// made with.
func (k *Key) limit(r NewKey, by Key) error {
	k.ExpiresAt, k.Allowed = r.ExpiresAt, r.Allowed
	if k.ExpiresAt == nil {
		k.ExpiresAt = by.ExpiresAt
	}
	if k.Allowed == nil {
		k.Allowed = by.Allowed
	}
	if by.ExpiresAt != nil && k.ExpiresAt.After(*by.ExpiresAt) {
		return errs.InvalidField("expires_at", "is after the end of the key that makes this one, %s", by.ExpiresAt.UTC().Format(time.RFC3339))
	}
	for _, n := range k.Allowed {
		if by.Allowed != nil && !slices.ContainsFunc(by.Allowed, func(outer netip.Prefix) bool { return outer.Bits() <= n.Bits() && outer.Contains(n.Addr()) }) {
			return errs.InvalidField("allowed_cidrs", "%s is not within the networks of the key that makes this one", n)
		}
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

// DeleteKey deletes a key, an admin also one of another user. Once it returns, the key is
// not accepted any more, and open requests with it end. The caller's own last key cannot be
// deleted. Errors: errs.NotFound, errs.Conflict with code last_key or last_admin.
func (s *Service) DeleteKey(ctx context.Context, caller Principal, id string) error {
	scope := Owner(caller.OwnerID)
	if caller.Rights.Include(Admin) {
		scope = Everyone
	}
	if err := s.store.DeleteKey(ctx, scope, id, caller.OwnerID); err != nil {
		return err
	}
	s.revoke(ctx, revocation{keyID: id})
	return nil
}

func newKey(id, owner, name, secret string) Key {
	sum := sha256.Sum256([]byte(secret))
	k := Key{
		ID: id, OwnerID: owner, Name: name, Hash: sum[:], Rights: AllRights,
		CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
	}
	if IsSecret(secret) { // a preset one may have few characters in all
		k.Prefix = secret[:shownPrefix]
	}
	return k
}
