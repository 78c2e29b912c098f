package image

import (
	"cmp"
	"context"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/logkey"
)

// Registration is a request to register files of the host.
type Registration struct {
	ID                     string // "" for a random one
	Name                   string // "" for none
	KernelPath, RootfsPath string // absolute
	ModulesPath            string // absolute; "" to search for them
	BootArgs               string

	// Trusted says that hatchd itself or its operator chose the paths. Those of clients
	// must be in directories that the operator allows.
	Trusted bool
}

// Service is what can be done with images.
type Service struct {
	store     Store
	inspector Inspector
	initramfs Initramfs
	builder   Builder
	log       *slog.Logger

	closing context.CancelFunc
	running context.Context // of builds; done once Close was called
	work    sync.WaitGroup

	mu     sync.Mutex
	builds map[string]*build // by id
}

// New makes a service; Close ends its builds.
func New(store Store, inspector Inspector, initramfs Initramfs, builder Builder, log *slog.Logger) *Service {
	running, closing := context.WithCancel(context.Background())
	return &Service{
		store: store, inspector: inspector, initramfs: initramfs, builder: builder, log: log,
		running: running, closing: closing, builds: map[string]*build{},
	}
}

// Close ends the running builds and waits for them.
func (s *Service) Close() error {
	s.closing()
	s.work.Wait()
	return nil
}

// Register checks the files and stores them as an image.
// Errors: errs.Invalid names the field and what is missing; errs.Conflict for
// an id or a name that is taken.
func (s *Service) Register(ctx context.Context, owner string, r Registration) (Image, error) {
	if err := r.check(); err != nil {
		return Image{}, err
	}
	i, err := s.examine(ctx, owner, r)
	if e, ok := errs.As(err); ok && e.Err != nil {
		s.log.Info("an image was refused", "field", e.Field, logkey.Reason, e.Err)
	}
	if err != nil {
		return Image{}, err
	}
	return i, s.store.InsertImage(ctx, i)
}

func (s *Service) examine(ctx context.Context, owner string, r Registration) (Image, error) {
	facts, err := s.inspector.Inspect(ctx, r)
	if err != nil {
		return Image{}, err
	}
	sharing := access.Sharing{Visibility: access.Private}
	if owner == access.SystemID { // made by hatchd, for all users
		sharing.Visibility = access.Public
	}
	return Image{
		ID: cmp.Or(r.ID, id.New("img_")), OwnerID: owner, Name: r.Name, Sharing: sharing,
		Kernel: facts.Kernel, KernelVersion: facts.KernelVersion, ModulesPath: facts.ModulesPath,
		Rootfs: facts.Rootfs, RootfsFormat: facts.RootfsFormat, DiskMode: facts.DiskMode,
		BootArgs: r.BootArgs, CloudInit: facts.CloudInit,
		CreatedAt: time.Now().UTC().Truncate(time.Microsecond),
	}, nil
}

var (
	idForm   = regexp.MustCompile(`^img_[a-z0-9][a-z0-9_]{0,58}$`)
	nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
)

func (r Registration) check() error {
	switch {
	case r.ID != "" && !idForm.MatchString(r.ID):
		return errs.InvalidField("id", "%q is not a valid image id: want img_ and up to 59 lower-case letters, digits or _", r.ID)
	case r.ID == DefaultID || r.ID == MinimalID || r.ID == BaseID:
		return errs.InvalidField("id", "%s is reserved for the image that hatchd makes", r.ID).
			WithHint("give another id; to change the default image set HATCH_DEFAULT_KERNEL_PATH and HATCH_DEFAULT_ROOTFS_PATH")
	case r.Name != "" && !nameForm.MatchString(r.Name):
		return errs.InvalidField("name", "%q is not a valid name: want up to 63 lower-case letters, digits, dots, hyphens and underscores", r.Name)
	case len(r.BootArgs) > maxBootArgs || strings.ContainsFunc(r.BootArgs, func(c rune) bool { return c < ' ' || c > '~' }):
		return errs.InvalidField("boot_args", "want up to %d bytes of printable ASCII", maxBootArgs)
	}
	return nil
}

// maxBootArgs is the limit of a VM too, whose default is the image's value.
const maxBootArgs = 1536

// Get returns one image. Errors: errs.NotFound.
func (s *Service) Get(ctx context.Context, scope access.Scope, id string) (Image, error) {
	return s.store.Image(ctx, scope, id)
}

// List returns the images that the scope sees, newest first.
func (s *Service) List(ctx context.Context, scope access.Scope) ([]Image, error) {
	return s.store.Images(ctx, scope)
}

// Share changes who sees an image. Only its owner and admins may.
// Errors: errs.NotFound; errs.Forbidden; errs.Invalid.
func (s *Service) Share(ctx context.Context, scope access.Scope, id string, change func(*access.Sharing) error) (Image, error) {
	i, err := s.store.Image(ctx, scope, id)
	if err != nil {
		return Image{}, err
	}
	if err := scope.MayChange(i.OwnerID); err != nil {
		return Image{}, err
	}
	return s.store.UpdateImage(ctx, i.ID, func(i *Image) error {
		if err := change(&i.Sharing); err != nil {
			return err
		}
		return i.Sharing.Check(scope)
	})
}

// Delete removes an image; its files stay. If no VM and no snapshot uses the image,
// it calls forget to end hatchd's own use of it.
// Errors: errs.NotFound; errs.Conflict with code image_in_use; forget's.
func (s *Service) Delete(ctx context.Context, scope access.Scope, id string, forget func(ctx context.Context, id string) error) error {
	i, err := s.store.Image(ctx, scope, id)
	if err != nil {
		return err
	}
	if err := scope.MayChange(i.OwnerID); err != nil {
		return err
	}
	id = i.ID
	users, err := s.store.ImageUsers(ctx, id)
	if err != nil {
		return err
	}
	if users > 0 {
		return errs.New(errs.Conflict, "image_in_use", "cannot delete image %s: %d VMs and snapshots were made from it", id, users).
			WithHint("delete those VMs and snapshots first")
	}
	if err := forget(ctx, id); err != nil {
		return err
	}
	return s.store.DeleteImage(ctx, access.Owner(i.OwnerID), id)
}

// Image returns an image that a new VM can start from: its files are still the
// registered ones. Errors: errs.NotFound with code image_not_found;
// errs.Conflict with code image_changed.
func (s *Service) Image(ctx context.Context, scope access.Scope, id string) (Image, error) {
	i, err := s.store.Image(ctx, scope, id)
	if err != nil {
		return Image{}, err
	}
	if !s.Unchanged(i.Boot()) {
		return Image{}, errs.New(errs.Conflict, "image_changed",
			"cannot use image %s: its kernel or root file system was changed or removed since it was registered", id).
			WithHint("register the new files as another image")
	}
	return i, nil
}

// Unchanged reports whether the kernel and the root file system of b are still
// the registered files.
func (s *Service) Unchanged(b Boot) bool {
	return s.inspector.Unchanged(b.Kernel) && s.inspector.Unchanged(b.Rootfs)
}

// Initramfs returns the archive that boots b, made when missing.
func (s *Service) Initramfs(ctx context.Context, b Boot) (string, error) {
	return s.initramfs.Make(ctx, b)
}

// SetDefault makes the operator's own kernel and root file system img_default.
// It does nothing when they are already.
func (s *Service) SetDefault(ctx context.Context, owner, kernel, rootfs string) error {
	i, err := s.store.Image(ctx, access.Owner(owner), DefaultID)
	if err == nil && i.Kernel.Path == kernel && i.Rootfs.Path == rootfs && s.Unchanged(i.Boot()) {
		return nil
	}
	if err != nil && !errs.Is(err, errs.NotFound) {
		return err
	}
	return s.replace(ctx, owner, Registration{ID: DefaultID, KernelPath: kernel, RootfsPath: rootfs, Trusted: true})
}

// replace registers an image under an id that may be in use; VMs of the old image
// keep its files.
func (s *Service) replace(ctx context.Context, owner string, r Registration) error {
	i, err := s.examine(ctx, owner, r)
	if err != nil {
		return err
	}
	return s.store.UpsertImage(ctx, i)
}
