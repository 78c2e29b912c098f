package access

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/logkey"
)

// UserPrefix starts the id of a user.
const UserPrefix = "usr_"

// CreateUser creates a user. It has no key yet.
// Errors: errs.Invalid; errs.Conflict with code user_exists.
func (s *Service) CreateUser(ctx context.Context, name string, role Role) (User, error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	u := User{ID: id.New(UserPrefix), Name: name, Role: role, CreatedAt: now, UpdatedAt: now}
	if err := u.check(); err != nil {
		return User{}, err
	}
	return u, s.store.InsertUser(ctx, u)
}

var userName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._@-]{0,61}[a-z0-9])?$`)

func (u User) check() error {
	switch {
	case !userName.MatchString(u.Name):
		return errs.InvalidField("name", "%q is not a valid name: want up to 63 lower-case letters, digits, '.', '_', '@' and '-'; a letter or digit first and last", errs.Brief(u.Name))
	case strings.HasPrefix(u.Name, UserPrefix), strings.HasPrefix(u.Name, "acc_"):
		return errs.InvalidField("name", "%q looks like an id; give a name that does not begin with %s or acc_", u.Name, UserPrefix)
	case u.Name == "system":
		return errs.InvalidField("name", "%q is hatchd's own user; give another name", u.Name)
	case u.Role != RoleAdmin && u.Role != RoleMember:
		return errs.InvalidField("role", "%q is not a role: want %s or %s", u.Role, RoleAdmin, RoleMember)
	}
	return nil
}

// User returns the user with this id or, failing that, this name. Errors: errs.NotFound.
func (s *Service) User(ctx context.Context, idOrName string) (User, error) {
	return s.store.User(ctx, idOrName)
}

// Users returns all users but hatchd's own, newest first.
func (s *Service) Users(ctx context.Context) ([]User, error) { return s.store.Users(ctx) }

// UpdateUser changes the user with this id or name, unless change returns an error; it may
// run more than once. When it returns, the keys of a user that was disabled are refused,
// and its open requests end, as do those of a user whose role was changed.
// Errors: errs.NotFound; errs.Invalid; errs.Conflict with code user_exists, last_admin or
// user_deleting.
func (s *Service) UpdateUser(ctx context.Context, idOrName string, change func(*User) error) (User, error) {
	was, err := s.store.User(ctx, idOrName)
	if err != nil {
		return User{}, err
	}
	u, err := s.store.UpdateUser(ctx, was.ID, func(u *User) error {
		if u.Deleting {
			return errDeleting
		}
		was = *u
		if err := change(u); err != nil {
			return err
		}
		if u.Name == was.Name { // also one that was given when other names were valid
			return User{Name: "x", Role: u.Role}.check()
		}
		return u.check()
	})
	if err != nil {
		return User{}, err
	}
	if u.Disabled != was.Disabled || u.Role != was.Role {
		s.revoke(ctx, revocation{userID: u.ID})
		return u, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetLocked(revocation{userID: u.ID}) // they have the old name
	return u, nil
}

var errDeleting = errs.New(errs.Conflict, "user_deleting", "cannot do this: the user is being deleted").
	WithHint("delete it again, with cascade, to continue a deletion that was interrupted")

// DeleteUser deletes the user with this id or name. With cascade it deletes all of its
// objects first; without, it refuses a user that owns any but keys. The deletion goes on
// when ctx ends, and hatchd's next start continues one that was interrupted.
// Errors: errs.NotFound; errs.Conflict with code user_owns_objects, images_in_use,
// last_admin or first_admin.
func (s *Service) DeleteUser(ctx context.Context, idOrName string, cascade bool) error {
	u, err := s.store.User(ctx, idOrName)
	if err != nil {
		return err
	}
	if u.ID == AdminID {
		return errs.New(errs.Conflict, "first_admin", "cannot delete the user %s: HATCH_API_KEY is a key of it", u.Name).
			WithHint("disable it instead")
	}
	u, err = s.store.BeginDeletion(ctx, u.ID, func(o Owned) error { return o.mayGo(cascade) })
	if err != nil {
		return err
	}
	s.revoke(ctx, revocation{userID: u.ID})
	done := make(chan error, 1)
	if !s.start(func(ctx context.Context) { done <- s.finishDeletion(ctx, u) }) {
		return errs.New(errs.Unavailable, "shutting_down", "the user is deleted when hatchd has started again")
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mayGo refuses the deletion of a user with objects that are not to be deleted, too.
func (o Owned) mayGo(cascade bool) error {
	switch {
	case o.UsedHere > 0:
		return errs.New(errs.Conflict, "images_in_use", "cannot delete the user: %d VMs and snapshots of other users were made from its images", o.UsedHere).
			WithHint("delete those VMs and snapshots first")
	case !cascade && o != (Owned{Keys: o.Keys}):
		return errs.New(errs.Conflict, "user_owns_objects", "cannot delete the user: it owns %s", o).
			WithHint("delete them first, or delete them with the user: hatch user rm --cascade, or ?cascade=true in the API")
	}
	return nil
}

// String lists the numbers that are not zero.
func (o Owned) String() string {
	var all []string
	for _, n := range []struct {
		count int
		what  string
	}{{o.VMs, "vms"}, {o.Snapshots, "snapshots"}, {o.Images, "images"}, {o.Templates, "templates"}, {o.Webhooks, "webhooks"}, {o.Routes, "routes"}, {o.Keys, "keys"}} {
		if n.count > 0 {
			all = append(all, fmt.Sprintf("%s: %d", n.what, n.count))
		}
	}
	return strings.Join(all, ", ")
}

// deletionAttempts bounds the attempts of a deletion that requests of the user, which had
// begun before, add objects to.
const deletionAttempts = 5

// finishDeletion deletes what a user owns, and the user.
func (s *Service) finishDeletion(ctx context.Context, u User) (err error) {
	for range deletionAttempts {
		if err = s.belongings.DeleteOf(ctx, u.ID); err != nil {
			return fmt.Errorf("cannot delete what user %s owns: %w", u.ID, err)
		}
		if err = s.store.EndDeletion(ctx, u.ID); !errs.HasCode(err, "user_owns_objects") {
			return err
		}
	}
	return err
}

// Resume makes the service delete what users own by means of b, and continues the deletions
// that an earlier hatchd has begun. It must be called once, before any request.
func (s *Service) Resume(ctx context.Context, b Belongings) error {
	s.belongings = b
	users, err := s.store.Users(ctx)
	if err != nil {
		return fmt.Errorf("cannot read which users are being deleted: %w", err)
	}
	for _, u := range users {
		if !u.Deleting {
			continue
		}
		s.start(func(ctx context.Context) {
			if err := s.finishDeletion(ctx, u); err != nil {
				s.log.Error("cannot finish the deletion of a user; delete it again", logkey.User, u.ID, logkey.Error, err)
			}
		})
	}
	return nil
}
