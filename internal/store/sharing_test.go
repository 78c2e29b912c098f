package store

import (
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/template"
)

// What a member shares gets no name that other users give to something else.
func TestNamesOfSharedTemplates(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		member, other := access.Owner("acc_a"), access.Owner("acc_b")
		account(t, s, "acc_b")
		admin := administrator(t, s, "usr_c")
		add := func(id, owner, name string, sharing access.Sharing) {
			noError(t, s.InsertTemplate(ctx, template.Template{ID: id, OwnerID: owner, Name: name, CreatedAt: now(), UpdatedAt: now()}))
			_, err := s.UpdateTemplate(ctx, access.Owner(owner), id, func(t *template.Template) error { t.Sharing = sharing; return nil })
			noError(t, err)
		}
		public := access.Sharing{Visibility: access.Public}
		add("tpl_shared", "acc_a", "small", access.Sharing{Visibility: access.Shared, With: []string{"acc_b"}})
		_, err := s.Template(ctx, other, "small")
		hasCode(t, err, errs.NotFound, "template_not_found")
		add("tpl_public", admin.ID, "small", public)
		add("tpl_hidden", admin.ID, "hidden", access.Sharing{Visibility: access.Private})
		owner, err := s.User(ctx, "acc_a")
		noError(t, err)
		for _, c := range []struct {
			scope      access.Scope
			name, want string
		}{
			{other, "small", "tpl_public"},
			{other, "tpl_shared", "tpl_shared"},
			{other, owner.Name + "/small", "tpl_shared"},
			{other, admin.Name + "/small", "tpl_public"},
			{other, admin.Name + "/hidden", ""},
			{other, "/small", ""},
			{member, "small", "tpl_shared"},
		} {
			got, err := s.Template(ctx, c.scope, c.name)
			if c.want == "" {
				hasCode(t, err, errs.NotFound, "template_not_found")
				continue
			}
			if noError(t, err); got.ID != c.want {
				t.Errorf("%s is %s, want %s", c.name, got.ID, c.want)
			}
		}
		add("tpl_own", "acc_b", "small", access.Sharing{Visibility: access.Private})
		if got, err := s.Template(ctx, other, "small"); err != nil || got.ID != "tpl_own" {
			t.Errorf("an own template comes first: %s, %v", got.ID, err)
		}
	})
}
