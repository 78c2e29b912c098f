package template

import (
	"context"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
)

// IDPrefix starts every template's id.
const IDPrefix = "tpl_"

// Limits on what a template may hold. Those of fields that VMs have too are
// the same as in internal/vm, which checks again when a VM is made from the
// template and knows the host's own limits; a test compares them.
const (
	MaxDescription = 1024 // bytes
	MinMemMiB      = 64
	MinDiskMiB     = 64
	MaxBootArgs    = 1536    // bytes
	MaxUserData    = 1 << 20 // bytes
	MaxLabels      = 64
	MaxLabelKey    = 63  // bytes
	MaxLabelValue  = 255 // bytes
	MaxSSHKeys     = 64
	MaxSSHKey      = 16 << 10 // bytes
)

// Service is what can be done with templates.
type Service struct {
	store  Store
	images Images
}

// New makes a service.
func New(store Store, images Images) *Service { return &Service{store: store, images: images} }

// Create checks t and stores it under a new id; ID, OwnerID and the times of t
// itself are not read. Errors: errs.Invalid names the field; errs.Conflict
// with code template_exists.
func (s *Service) Create(ctx context.Context, owner string, t Template) (Template, error) {
	if err := check(t); err != nil {
		return Template{}, err
	}
	if err := s.checkImage(ctx, owner, t.ImageID); err != nil {
		return Template{}, err
	}
	t.ID = id.New(IDPrefix)
	t.OwnerID = owner
	t.CreatedAt = time.Now().UTC().Truncate(time.Microsecond)
	t.UpdatedAt = t.CreatedAt
	return t, s.store.InsertTemplate(ctx, t)
}

// Get returns the template with this id or, failing that, this name.
// Errors: errs.NotFound with code template_not_found.
func (s *Service) Get(ctx context.Context, owner, idOrName string) (Template, error) {
	return s.store.Template(ctx, owner, idOrName)
}

// Template is Get, by the name that internal/vm asks for.
func (s *Service) Template(ctx context.Context, owner, idOrName string) (Template, error) {
	return s.store.Template(ctx, owner, idOrName)
}

// List returns the owner's templates, newest first.
func (s *Service) List(ctx context.Context, owner string) ([]Template, error) {
	return s.store.Templates(ctx, owner)
}

// Delete removes the template with this id or, failing that, this name. VMs
// made from it are not touched. Errors: errs.NotFound with code template_not_found.
func (s *Service) Delete(ctx context.Context, owner, idOrName string) error {
	t, err := s.store.Template(ctx, owner, idOrName)
	if err != nil {
		return err
	}
	return s.store.DeleteTemplate(ctx, owner, t.ID)
}

func (s *Service) checkImage(ctx context.Context, owner, id string) error {
	if id == "" {
		return nil
	}
	_, err := s.images.Image(ctx, owner, id)
	if errs.Is(err, errs.NotFound) {
		return errs.InvalidField("image_id", "there is no image %q", id).
			WithHint("GET /images lists them").WithCause(err)
	}
	return err
}

// check refuses what no VM could be made from on any host.
func check(t Template) error {
	for _, check := range []func(Template) error{
		checkName, checkSizes, checkBootArgs, checkUserData, checkLabels, checkSSHKeys, checkRateLimits,
	} {
		if err := check(t); err != nil {
			return err
		}
	}
	return nil
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func checkName(t Template) error {
	switch {
	case !nameForm.MatchString(t.Name):
		return errs.InvalidField("name", "%q is not a name; up to 63 letters, digits, '.', '_' and '-' can be given, a letter or digit first", t.Name)
	case strings.HasPrefix(t.Name, IDPrefix):
		return errs.InvalidField("name", "%q looks like an id; give a name that does not begin with %s", t.Name, IDPrefix)
	case len(t.Description) > MaxDescription || !plain(t.Description):
		return errs.InvalidField("description", "up to %d bytes of text can be given", MaxDescription)
	}
	return nil
}

func checkSizes(t Template) error {
	for _, size := range []struct {
		field string
		value *int
		least int
	}{{"vcpu_count", t.VCPUs, 1}, {"mem_mib", t.MemMiB, MinMemMiB}, {"disk_mib", t.DiskMiB, MinDiskMiB}} {
		if size.value != nil && *size.value < size.least {
			return errs.InvalidField(size.field, "%d is out of range; %d or more can be given", *size.value, size.least)
		}
	}
	return nil
}

func checkBootArgs(t Template) error {
	if t.BootArgs == nil {
		return nil
	}
	if len(*t.BootArgs) > MaxBootArgs {
		return errs.InvalidField("boot_args", "%d bytes are too long; up to %d can be given", len(*t.BootArgs), MaxBootArgs)
	}
	if strings.ContainsFunc(*t.BootArgs, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errs.InvalidField("boot_args", "only printable ASCII can be given")
	}
	return nil
}

func checkUserData(t Template) error {
	if t.UserData != nil && len(*t.UserData) > MaxUserData {
		return errs.InvalidField("user_data", "%d bytes are too long; up to %d can be given", len(*t.UserData), MaxUserData)
	}
	return nil
}

func checkLabels(t Template) error {
	if len(t.Labels) > MaxLabels {
		return errs.InvalidField("labels", "%d are too many; up to %d can be given", len(t.Labels), MaxLabels)
	}
	for key, value := range t.Labels {
		if key == "" || len(key) > MaxLabelKey || strings.ContainsAny(key, "=,\n") || !plain(key) {
			return errs.InvalidField("labels", "key %q must have 1 to %d bytes and no '=', ',' or control character", key, MaxLabelKey)
		}
		if len(value) > MaxLabelValue || strings.Contains(value, "\n") || !plain(value) {
			return errs.InvalidField("labels", "the value of %q must have up to %d bytes and no control character", key, MaxLabelValue)
		}
	}
	return nil
}

func checkSSHKeys(t Template) error {
	if len(t.SSHKeys) > MaxSSHKeys {
		return errs.InvalidField("ssh_authorized_keys", "%d are too many; up to %d can be given", len(t.SSHKeys), MaxSSHKeys)
	}
	for i, key := range t.SSHKeys {
		_, _, _, _, err := ssh.ParseAuthorizedKey([]byte(key))
		if err != nil || len(key) > MaxSSHKey || strings.ContainsAny(key, "\r\n") || !plain(key) {
			return errs.InvalidField("ssh_authorized_keys", "entry %d is not one public key of the authorized_keys form, such as \"ssh-ed25519 AAAA… name\"", i+1)
		}
	}
	return nil
}

func checkRateLimits(t Template) error {
	if t.RateLimits == nil {
		return nil
	}
	return t.RateLimits.Check()
}

// plain reports whether text is UTF-8 without NUL.
func plain(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsRune(text, 0)
}
