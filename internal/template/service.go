package template

import (
	"context"
	"regexp"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
)

// IDPrefix starts every template's id.
const IDPrefix = "tpl_"

// Service is what can be done with templates.
type Service struct {
	store  Store
	images Images
}

// New makes a service.
func New(store Store, images Images) *Service { return &Service{store: store, images: images} }

// Create checks t and stores it with a new id; it ignores t's ID, OwnerID and times.
// Errors: errs.Invalid names the field; errs.Conflict with code template_exists.
func (s *Service) Create(ctx context.Context, owner string, t Template) (Template, error) {
	if err := check(t); err != nil {
		return Template{}, err
	}
	if err := s.checkImage(ctx, access.Owner(owner), t.ImageID); err != nil {
		return Template{}, err
	}
	t.ID = id.New(IDPrefix)
	t.Sharing = access.Sharing{Visibility: access.Private}
	t.OwnerID = owner
	t.CreatedAt = time.Now().UTC().Truncate(time.Microsecond)
	t.UpdatedAt = t.CreatedAt
	return t, s.store.InsertTemplate(ctx, t)
}

// Get returns the template with this id or, failing that, this name.
// Errors: errs.NotFound with code template_not_found.
func (s *Service) Get(ctx context.Context, scope access.Scope, idOrName string) (Template, error) {
	return s.store.Template(ctx, scope, idOrName)
}

// Template is Get, for internal/vm.
func (s *Service) Template(ctx context.Context, scope access.Scope, idOrName string) (Template, error) {
	return s.store.Template(ctx, scope, idOrName)
}

// List returns the templates that the scope sees, newest first.
func (s *Service) List(ctx context.Context, scope access.Scope) ([]Template, error) {
	return s.store.Templates(ctx, scope)
}

// Update changes the template with this id or, failing that, this name. change may run
// more than once; its error leaves the template as it was.
// Errors: as Create's, and errs.NotFound with code template_not_found.
func (s *Service) Update(ctx context.Context, scope access.Scope, idOrName string, change func(*Template) error) (Template, error) {
	now, err := s.store.Template(ctx, scope, idOrName)
	if err != nil {
		return Template{}, err
	}
	if err := scope.MayChange(now.OwnerID); err != nil {
		return Template{}, err
	}
	id, image := now.ID, now.ImageID
	if err := change(&now); err != nil {
		return Template{}, err
	}
	if now.ImageID != image { // outside of the transaction, which it would prolong
		if err := s.checkImage(ctx, scope, now.ImageID); err != nil {
			return Template{}, err
		}
	}
	return s.store.UpdateTemplate(ctx, access.Owner(now.OwnerID), id, func(t *Template) error {
		if err := change(t); err != nil {
			return err
		}
		if err := t.Sharing.Check(scope); err != nil {
			return err
		}
		return check(*t)
	})
}

// Delete removes the template with this id or, failing that, this name, unless check
// returns an error for it. VMs made from it do not change.
// Errors: errs.NotFound with code template_not_found; check's.
func (s *Service) Delete(ctx context.Context, scope access.Scope, idOrName string, check func(Template) error) error {
	t, err := s.store.Template(ctx, scope, idOrName)
	if err != nil {
		return err
	}
	if err := scope.MayChange(t.OwnerID); err != nil {
		return err
	}
	return s.store.DeleteTemplate(ctx, access.Owner(t.OwnerID), t.ID, check)
}

func (s *Service) checkImage(ctx context.Context, scope access.Scope, id string) error {
	if id == "" {
		return nil
	}
	_, err := s.images.Image(ctx, scope, id)
	if errs.Is(err, errs.NotFound) {
		return errs.InvalidField("image_id", "there is no image %q", id).
			WithHint("GET /images lists them").WithCause(err)
	}
	return err
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func check(t Template) error {
	switch {
	case !nameForm.MatchString(t.Name):
		return errs.InvalidField("name", "%q is not a valid name: want up to 63 letters, digits, '.', '_' and '-', a letter or digit first", t.Name)
	case strings.HasPrefix(t.Name, IDPrefix):
		return errs.InvalidField("name", "%q looks like an id; give a name that does not begin with %s", t.Name, IDPrefix)
	}
	return t.Overrides.Check()
}
