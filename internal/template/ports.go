package template

import (
	"context"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/image"
)

// Store keeps templates. A method that takes a scope sees the templates in it only.
type Store interface {
	// InsertTemplate makes a template. Errors: errs.Conflict with code
	// template_exists when the owner has one of that name.
	InsertTemplate(ctx context.Context, t Template) error

	// Template returns the template with this id or, failing that, this name.
	// Errors: errs.NotFound with code template_not_found.
	Template(ctx context.Context, scope access.Scope, idOrName string) (Template, error)

	// Templates returns all that the scope sees, as Template does, newest first.
	Templates(ctx context.Context, scope access.Scope) ([]Template, error)

	// UpdateTemplate applies change to the template with this id and stores Name and
	// Overrides, in one transaction, unless change returns an error. change may run more
	// than once. Errors: errs.NotFound; errs.Conflict with code template_exists; change's.
	UpdateTemplate(ctx context.Context, scope access.Scope, id string, change func(*Template) error) (Template, error)

	// DeleteTemplate deletes by id, unless check returns an error for the template as it
	// is. Errors: errs.NotFound with code template_not_found; check's.
	DeleteTemplate(ctx context.Context, scope access.Scope, id string, check func(Template) error) error
}

// Images finds images.
type Images interface {
	// Image returns an image the owner may use. Errors: errs.NotFound.
	Image(ctx context.Context, scope access.Scope, id string) (image.Image, error)
}
