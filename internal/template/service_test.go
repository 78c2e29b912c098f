package template_test

import (
	"context"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

// memory is a store for one test.
type memory struct{ by map[string]template.Template }

func (m *memory) InsertTemplate(_ context.Context, t template.Template) error {
	m.by[t.ID] = t
	return nil
}

func (m *memory) Template(_ context.Context, owner, idOrName string) (template.Template, error) {
	for _, t := range m.by {
		if t.OwnerID == owner && (t.ID == idOrName || t.Name == idOrName) {
			return t, nil
		}
	}
	return template.Template{}, errs.New(errs.NotFound, "template_not_found", "there is no template %q", idOrName)
}

func (m *memory) Templates(context.Context, string) ([]template.Template, error) { return nil, nil }

func (m *memory) DeleteTemplate(_ context.Context, _, id string) error {
	delete(m.by, id)
	return nil
}

// only is a set of images that has this one.
type only string

func (o only) Image(_ context.Context, _, id string) (image.Image, error) {
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
	made, err := s.Create(ctx, "acc_a", template.Template{Name: "web", Defaults: template.Defaults{
		ImageID: image.DefaultID, VCPUs: new(2), SSHKeys: []string{publicKey}, Labels: map[string]string{"team": "a"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(made.ID, template.IDPrefix) || made.OwnerID != "acc_a" || made.CreatedAt.IsZero() || !made.UpdatedAt.Equal(made.CreatedAt) {
		t.Errorf("made %+v", made)
	}
	for _, key := range []string{made.ID, "web"} {
		if got, err := s.Get(ctx, "acc_a", key); err != nil || got.ID != made.ID {
			t.Errorf("Get(%s) = %+v, %v", key, got, err)
		}
	}
	if err := s.Delete(ctx, "acc_a", "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Template(ctx, "acc_a", made.ID); !errs.HasCode(err, "template_not_found") {
		t.Errorf("after delete: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	long := strings.Repeat("x", template.MaxUserData+1)
	many := map[string]string{}
	for i := range template.MaxLabels + 1 {
		many[strings.Repeat("k", i%60+1)+string(rune('a'+i/60))] = ""
	}
	for name, c := range map[string]struct {
		field string
		t     template.Template
	}{
		"no name":           {"name", template.Template{}},
		"name like an id":   {"name", template.Template{Name: "tpl_x"}},
		"name with a slash": {"name", template.Template{Name: "a/b"}},
		"long description":  {"description", template.Template{Name: "a", Description: strings.Repeat("x", 1025)}},
		"NUL":               {"description", template.Template{Name: "a", Description: "\x00"}},
		"no CPUs":           {"vcpu_count", with(template.Defaults{VCPUs: new(0)})},
		"little memory":     {"mem_mib", with(template.Defaults{MemMiB: new(63)})},
		"little disk":       {"disk_mib", with(template.Defaults{DiskMiB: new(-1)})},
		"boot args":         {"boot_args", with(template.Defaults{BootArgs: new("a\nb")})},
		"long boot args":    {"boot_args", with(template.Defaults{BootArgs: new(strings.Repeat("x", template.MaxBootArgs+1))})},
		"long user data":    {"user_data", with(template.Defaults{UserData: &long})},
		"many labels":       {"labels", with(template.Defaults{Labels: many})},
		"label with =":      {"labels", with(template.Defaults{Labels: map[string]string{"a=b": ""}})},
		"label with NUL":    {"labels", with(template.Defaults{Labels: map[string]string{"a": "\x00"}})},
		"no key":            {"ssh_authorized_keys", with(template.Defaults{SSHKeys: []string{"ssh-rsa nonsense"}})},
		"two keys in one":   {"ssh_authorized_keys", with(template.Defaults{SSHKeys: []string{publicKey + "\n" + publicKey}})},
		"slow disk":         {"rate_limits", with(template.Defaults{RateLimits: &vmm.RateLimits{Disk: vmm.DiskLimit{OpsPerSecond: 9}}})},
		"unknown image":     {"image_id", with(template.Defaults{ImageID: "img_none"})},
	} {
		_, err := newService().Create(t.Context(), "acc_a", c.t)
		if !errs.Is(err, errs.Invalid) || !errs.HasCode(err, "invalid_"+c.field) {
			t.Errorf("%s: %v, want a fault of %s", name, err, c.field)
		}
	}
}

func with(d template.Defaults) template.Template { return template.Template{Name: "a", Defaults: d} }

// A template must not refuse what a VM may have, nor the other way round.
func TestLimitsAreThoseOfVMs(t *testing.T) {
	for name, pair := range map[string][2]int{
		"user data":   {template.MaxUserData, vm.MaxUserData},
		"labels":      {template.MaxLabels, vm.MaxLabels},
		"label key":   {template.MaxLabelKey, vm.MaxLabelKey},
		"label value": {template.MaxLabelValue, vm.MaxLabelValue},
		"SSH keys":    {template.MaxSSHKeys, vm.MaxSSHKeys},
		"SSH key":     {template.MaxSSHKey, vm.MaxSSHKey},
		"memory":      {template.MinMemMiB, vm.MinMemMiB},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %d here, %d for VMs", name, pair[0], pair[1])
		}
	}
}
