package store

import (
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

// administrator makes an admin with a key of all rights.
func administrator(t *testing.T, s *Store, id string) access.User {
	t.Helper()
	u := access.User{ID: id, Name: id, Role: access.RoleAdmin, CreatedAt: now(), UpdatedAt: now()}
	noError(t, s.InsertUser(t.Context(), u))
	k := newKey("key_"+id, id)
	k.Rights, k.ExpiresAt, k.Allowed = access.AllRights, nil, nil
	noError(t, s.InsertKey(t.Context(), k))
	return u
}

func disable(u *access.User) error { u.Disabled = true; return nil }

func anything(access.Owned) error { return nil }

func TestUsers(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, access.SystemID)
		u := administrator(t, s, "usr_a")
		for _, key := range []string{u.ID, u.Name} {
			got, err := s.User(ctx, key)
			noError(t, err)
			equal(t, got, u)
		}
		for _, none := range []string{access.SystemID, "usr_none", "\x00"} {
			_, err := s.User(ctx, none)
			hasCode(t, err, errs.NotFound, "user_not_found")
		}
		all, err := s.Users(ctx)
		if noError(t, err); len(all) != 2 { // and acc_a
			t.Errorf("all are %+v", all)
		}
		hasCode(t, s.InsertUser(ctx, access.User{ID: "usr_b", Name: u.Name}), errs.Conflict, "user_exists")
		_, err = s.UpdateUser(ctx, "acc_a", func(o *access.User) error { o.Name = u.Name; return nil })
		hasCode(t, err, errs.Conflict, "user_exists")
	})
}

// Of admins who are disabled, deleted or lose their keys at the same time one is left.
func TestTheLastAdminStays(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, access.SystemID)
		for _, id := range []string{"usr_a", "usr_b", "usr_c"} {
			administrator(t, s, id)
		}
		left := func(err error) error {
			if errs.HasCode(err, "last_admin") {
				return nil
			}
			return err
		}
		var g errgroup.Group
		g.Go(func() error { _, err := s.UpdateUser(ctx, "usr_a", disable); return left(err) })
		g.Go(func() error { _, err := s.BeginDeletion(ctx, "usr_b", anything); return left(err) })
		g.Go(func() error { return left(s.DeleteKey(ctx, access.Everyone, "key_usr_c", "")) })
		noError(t, g.Wait())
		noError(t, s.write(ctx, func(tx *tx) error {
			n, err := tx.usableAdmins(ctx)
			equal(t, n, 1)
			return err
		}))
	})
}

// A user with objects cannot go; with it go its keys, events and shares.
func TestEndOfADeletion(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, access.SystemID)
		administrator(t, s, "usr_admin")
		noError(t, s.EndDeletion(ctx, "acc_a")) // it is not being deleted
		createVM(t, s, newVM("vm_a"))
		_, err := s.BeginDeletion(ctx, "acc_a", anything)
		noError(t, err)
		hasCode(t, s.EndDeletion(ctx, "acc_a"), errs.Conflict, "user_owns_objects")
		hasCode(t, s.InsertKey(ctx, newKey("key_b", "usr_none")), errs.NotFound, "user_not_found")
		account(t, s, "acc_b")
		i := anyImage()
		i.ID, i.OwnerID, i.Name = "img_b", "acc_b", "theirs"
		noError(t, s.InsertImage(ctx, i))
		_, err = s.UpdateImage(ctx, "img_b", func(i *image.Image) error {
			i.Sharing = access.Sharing{Visibility: access.Shared, With: []string{"acc_a"}}
			return nil
		})
		noError(t, err)
		if seen, err := s.Image(ctx, access.Owner("acc_a"), "img_b"); err != nil || seen.ID != "img_b" {
			t.Errorf("acc_a sees %+v, %v", seen, err)
		}
		noError(t, s.DeleteVM(ctx, "vm_a"))
		s.mustExec(t, "DELETE FROM images WHERE owner_id = 'acc_a'")
		noError(t, s.EndDeletion(ctx, "acc_a"))
		if got, err := s.Image(ctx, access.Owner("acc_b"), "img_b"); err != nil || got.Sharing.With != nil {
			t.Errorf("shared with %v, %v", got.Sharing.With, err)
		}
	})
}

// The first admin is restored also while another admin has a key, which may be lost.
func TestRestoreAdmin(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		account(t, s, access.SystemID)
		administrator(t, s, "usr_other")
		administrator(t, s, access.AdminID)
		_, err := s.UpdateUser(ctx, access.AdminID, func(u *access.User) error { u.Role, u.Disabled = access.RoleMember, true; return nil })
		noError(t, err)
		for _, want := range []bool{true, false} {
			changed, err := s.RestoreAdmin(ctx)
			noError(t, err)
			equal(t, changed, want)
		}
		u, err := s.User(ctx, access.AdminID)
		if noError(t, err); u.Role != access.RoleAdmin || u.Disabled {
			t.Errorf("it is %+v", u)
		}
	})
}
