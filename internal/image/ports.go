package image

import (
	"context"
	"io"
)

// Store keeps images. Every method that takes an owner sees that owner's
// images only.
type Store interface {
	// InsertImage makes an image. Errors: errs.Conflict with code image_exists
	// (the id) or name_taken.
	InsertImage(ctx context.Context, i Image) error

	// UpsertImage makes the image, or replaces the owner's one with its id.
	// CreatedAt of a replaced image is replaced too. Errors: errs.Conflict with
	// code name_taken, or image_exists when another owner has the id.
	UpsertImage(ctx context.Context, i Image) error

	// Image returns one image. Errors: errs.NotFound with code image_not_found.
	Image(ctx context.Context, owner, id string) (Image, error)

	// Images returns all, newest first.
	Images(ctx context.Context, owner string) ([]Image, error)

	// ImageUsers returns how many VMs and snapshots were made from the image, but
	// for hatchd's own.
	ImageUsers(ctx context.Context, id string) (int, error)

	// DeleteImage removes one image. Errors: errs.NotFound with code image_not_found.
	DeleteImage(ctx context.Context, owner, id string) error
}

// Inspector looks into the files of an image without running or mounting them.
type Inspector interface {
	// Inspect checks that VMs can start from what r names.
	// Errors: errs.Invalid with the field at fault and what is missing.
	Inspect(ctx context.Context, r Registration) (Facts, error)
}

// Facts is what an [Inspector] found.
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
	// Make returns the path of the archive for b; the same kernel, modules,
	// root file system format and agent give the same file, made once.
	Make(ctx context.Context, b Boot) (path string, err error)
}

// Builder makes images by recipe.
type Builder interface {
	// Build makes the files of a recipe, or finds them in the cache unless
	// force. Progress is written a line at a time. On error nothing half-made
	// stays. Errors: errs.Unsupported names the host's missing program.
	Build(ctx context.Context, recipe string, force bool, progress io.Writer) (Built, error)
}

// Built is what a [Builder] made: paths on the host.
type Built struct {
	Kernel, Rootfs, Modules string
	Cached                  bool
}
