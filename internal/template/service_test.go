package template_test

import (
	"context"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/template"
)

// memory is a store for one test.
type memory struct{ by map[string]template.Template }

func (m *memory) InsertTemplate(_ context.Context, t template.Template) error {
	m.by[t.ID] = t
	return nil
}

func (m *memory) Template(_ context.Context, scope access.Scope, idOrName string) (template.Template, error) {
	for _, t := range m.by {
		if scope.Sees(t.OwnerID) && (t.ID == idOrName || t.Name == idOrName) {
			return t, nil
		}
	}
	return template.Template{}, errs.New(errs.NotFound, "template_not_found", "there is no template %q", idOrName)
}

func (m *memory) Templates(context.Context, access.Scope) ([]template.Template, error) {
	return nil, nil
}

func (m *memory) UpdateTemplate(_ context.Context, _ access.Scope, id string, change func(*template.Template) error) (template.Template, error) {
	t := m.by[id]
	err := change(&t)
	if err == nil {
		m.by[id] = t
	}
	return t, err
}

func (m *memory) DeleteTemplate(_ context.Context, _ access.Scope, id string, check func(template.Template) error) error {
	if err := check(m.by[id]); err != nil {
		return err
	}
	delete(m.by, id)
	return nil
}

func always(template.Template) error { return nil }

// only is a set of one image.
type only string

func (o only) Image(_ context.Context, _ access.Scope, id string) (image.Image, error) {
	if id != string(o) {
		return image.Image{}, errs.New(errs.NotFound, "image_not_found", "there is no image %q", id)
	}
	return image.Image{ID: id}, nil
}

func newService() *template.Service {
	return template.New(&memory{by: map[string]template.Template{}}, only(image.DefaultID))
}

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me"

func TestCreateThenGetByIDAndName(t *testing.T) {
	s, ctx := newService(), t.Context()
	made, err := s.Create(ctx, "acc_a", template.Template{Name: "web", Overrides: machine.Overrides{
		ImageID: image.DefaultID, VCPUs: new(2), SSHKeys: []string{publicKey}, Labels: map[string]string{"team": "a"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(made.ID, template.IDPrefix) || made.OwnerID != "acc_a" || made.CreatedAt.IsZero() || !made.UpdatedAt.Equal(made.CreatedAt) {
		t.Errorf("made %+v", made)
	}
	for _, key := range []string{made.ID, "web"} {
		if got, err := s.Get(ctx, access.Owner("acc_a"), key); err != nil || got.ID != made.ID {
			t.Errorf("Get(%s) = %+v, %v", key, got, err)
		}
	}
	if err := s.Delete(ctx, access.Owner("acc_a"), "web", always); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Template(ctx, access.Owner("acc_a"), made.ID); !errs.HasCode(err, "template_not_found") {
		t.Errorf("after delete: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		field string
		t     template.Template
	}{
		"no name":           {"name", template.Template{}},
		"name like an id":   {"name", template.Template{Name: "tpl_x"}},
		"name with a slash": {"name", template.Template{Name: "a/b"}},
		"long description":  {"description", with(machine.Overrides{Description: new(strings.Repeat("x", 1025))})},
		"NUL":               {"description", with(machine.Overrides{Description: new("\x00")})},
		"no CPUs":           {"vcpu_count", with(machine.Overrides{VCPUs: new(0)})},
		"no key":            {"ssh_authorized_keys", with(machine.Overrides{SSHKeys: []string{"ssh-rsa nonsense"}})},
		"unknown image":     {"image_id", with(machine.Overrides{ImageID: "img_none"})},
	} {
		_, err := newService().Create(t.Context(), "acc_a", c.t)
		if !errs.Is(err, errs.Invalid) || !errs.HasCode(err, "invalid_"+c.field) {
			t.Errorf("%s: %v, want an error of %s", name, err, c.field)
		}
	}
}

func with(d machine.Overrides) template.Template { return template.Template{Name: "a", Overrides: d} }
