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

	// Templates returns all, newest first.
	Templates(ctx context.Context, scope access.Scope) ([]Template, error)

	// DeleteTemplate deletes by id. Errors: errs.NotFound with code template_not_found.
	DeleteTemplate(ctx context.Context, scope access.Scope, id string) error
}

// Images finds images.
type Images interface {
	// Image returns an image the owner may use. Errors: errs.NotFound.
	Image(ctx context.Context, scope access.Scope, id string) (image.Image, error)
}
