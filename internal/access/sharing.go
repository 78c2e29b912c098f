package access

import (
	"slices"

	"github.com/hatchvm/hatch/internal/errs"
)

// Visibility says which users beside its owner see an object, and can use it.
type Visibility string

// The visibilities.
const (
	Private Visibility = "private" // only its owner
	Shared  Visibility = "shared"  // and the users that it is shared with
	Public  Visibility = "public"  // all users
)

// MaxSharedWith bounds the users that one object is shared with.
const MaxSharedWith = 256

// Sharing is who sees an image or a template.
type Sharing struct {
	Visibility Visibility
	With       []string // ids of users, if shared
}

// Check checks who is to see an object after a change of it. Only an admin changes what is
// public then, because all users run it.
func (s Sharing) Check(scope Scope) error {
	switch {
	case !slices.Contains([]Visibility{Private, Shared, Public}, s.Visibility):
		return errs.InvalidField("visibility", "%q is not one: want %s, %s or %s", s.Visibility, Private, Shared, Public)
	case s.Visibility == Public && !scope.manages:
		return errs.New(errs.Forbidden, "forbidden", "cannot make this public, or change it while it is, with this API key: it lacks the scope %q", Admin).
			WithField("visibility").WithHint("make it private, or share it with users by their names, or ask an admin")
	case s.Visibility != Shared && len(s.With) > 0:
		return errs.InvalidField("shared_with", "is for the visibility %s only", Shared)
	case len(s.With) > MaxSharedWith:
		return errs.InvalidField("shared_with", "has %d users; the limit is %d", len(s.With), MaxSharedWith)
	}
	return nil
}

// MayChange refuses to change an object that the scope sees but does not own.
func (s Scope) MayChange(ownerID string) error {
	if s.Manages(ownerID) {
		return nil
	}
	return errs.New(errs.Forbidden, "not_owner", "cannot change this: another user shares it").WithHint("ask its owner, or an admin")
}
