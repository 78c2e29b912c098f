package image

import (
	"context"
	"io"

	"github.com/hatchvm/hatch/internal/access"
)

// Store keeps images. A method that takes a scope sees the
// images in it only.
type Store interface {
	// InsertImage makes an image. Errors: errs.Conflict with code image_exists
	// (the id) or name_taken.
	InsertImage(ctx context.Context, i Image) error

	// UpsertImage makes the image, or replaces the owner's one with its id.
	// CreatedAt of a replaced image is replaced too. Errors: errs.Conflict with
	// code name_taken, or image_exists when another owner has the id.
	UpsertImage(ctx context.Context, i Image) error

	// Image returns the image with this id or, failing that, this name, of those that
	// the scope's user owns, that are shared with it, and that are public. Errors: errs.NotFound with code image_not_found.
	Image(ctx context.Context, scope access.Scope, id string) (Image, error)

	// Images returns all that the scope sees, as Image does, newest first.
	Images(ctx context.Context, scope access.Scope) ([]Image, error)

	// ImageUsers returns how many VMs and snapshots were made from the image, but
	// for hatchd's own.
	ImageUsers(ctx context.Context, id string) (int, error)

	// UpdateImage changes who sees an image, unless change returns an error.
	// Errors: errs.NotFound with code image_not_found, or user_not_found.
	UpdateImage(ctx context.Context, id string, change func(*Image) error) (Image, error)

	// DeleteImage removes one image. Errors: errs.NotFound with code image_not_found.
	DeleteImage(ctx context.Context, scope access.Scope, id string) error
}

// Inspector inspects the files of an image without running or mounting them.
type Inspector interface {
	// Inspect checks that VMs can start from the files that r names.
	// Errors: errs.Invalid with the field and what is missing.
	Inspect(ctx context.Context, r Registration) (Facts, error)

	// Unchanged reports whether the file on disk is still f, by size, inode and
	// modification time.
	Unchanged(f File) bool
}

// Facts is the result of an [Inspector].
type Facts struct {
	Kernel        File
	KernelVersion string
	ModulesPath   string // "" when the kernel needs no modules
	Rootfs        File
	RootfsFormat  string
	DiskMode      DiskMode
	CloudInit     bool
}

// Initramfs makes the archive that boots an image.
type Initramfs interface {
	// Make returns the path of the archive for b, which it makes once for the same
	// kernel, modules, root file system format and agent.
	Make(ctx context.Context, b Boot) (path string, err error)
}

// Builder makes images by recipe.
type Builder interface {
	// Build makes the files of a recipe, or finds them in the cache unless force is
	// set. It writes progress line by line. On error no files are left.
	// Errors: errs.Unsupported names the host's missing program.
	Build(ctx context.Context, recipe string, force bool, progress io.Writer) (Built, error)
}

// Built is the result of a [Builder]: paths on the host.
type Built struct {
	Kernel, Rootfs, Modules string
	Cached                  bool
}
