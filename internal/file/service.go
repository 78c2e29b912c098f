package file

import (
	"context"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
)

// Bounds on what is asked for.
const (
	MaxPath  = 4096 // bytes, as Linux has it
	maxOwner = 64   // bytes of a user's or group's name
	maxMode  = 0o7777
)

// Service is what can be done with files in guests. Its methods are those of
// [Guest], for the guest of an owner's VM, and refuse with errs.Invalid what no
// guest needs to be asked. Errors are those of [Guests] and [Guest].
type Service struct {
	guests Guests
}

// New returns a service that works in guests.
func New(guests Guests) *Service { return &Service{guests: guests} }

// Read opens a regular file.
func (s *Service) Read(ctx context.Context, owner, vmID string, spec ReadSpec) (Info, io.ReadCloser, error) {
	guest, err := s.guest(ctx, owner, vmID, checkPath("path", spec.Path))
	if err != nil {
		return Info{}, nil, err
	}
	return guest.ReadFile(ctx, spec)
}

// Write writes a file and returns once it is in its place.
func (s *Service) Write(ctx context.Context, owner, vmID string, spec WriteSpec, content io.Reader) (Info, error) {
	guest, err := s.guest(ctx, owner, vmID, checkNew("path", spec.Path), checkMode(spec.Mode), checkOwner(spec.Owner))
	if err != nil {
		return Info{}, err
	}
	return guest.WriteFile(ctx, spec, content)
}

// Stat describes the file itself, be it a link.
func (s *Service) Stat(ctx context.Context, owner, vmID, path string) (Info, error) {
	guest, err := s.guest(ctx, owner, vmID, checkPath("path", path))
	if err != nil {
		return Info{}, err
	}
	return guest.StatFile(ctx, path)
}

// List calls each for the directory's entries, sorted by name.
func (s *Service) List(ctx context.Context, owner, vmID, path string, each func(Info) error) error {
	guest, err := s.guest(ctx, owner, vmID, checkPath("path", path))
	if err != nil {
		return err
	}
	return guest.ListFiles(ctx, path, each)
}

// DirectorySpec says which directory to make.
type DirectorySpec struct {
	Path    string
	Mode    uint32
	Owner   Owner
	Parents bool // make missing ones above it, too; one that exists is no error then
}

// MakeDirectory makes a directory.
func (s *Service) MakeDirectory(ctx context.Context, owner, vmID string, spec DirectorySpec) (Info, error) {
	guest, err := s.guest(ctx, owner, vmID, checkPath("path", spec.Path), checkMode(&spec.Mode), checkOwner(&spec.Owner))
	if err != nil {
		return Info{}, err
	}
	return guest.MakeDirectory(ctx, spec.Path, spec.Mode, spec.Owner, spec.Parents)
}

// Rename moves a file; what is at the new path is replaced.
func (s *Service) Rename(ctx context.Context, owner, vmID, from, to string) (Info, error) {
	guest, err := s.guest(ctx, owner, vmID, checkNew("from", from), checkNew("to", to))
	if err != nil {
		return Info{}, err
	}
	return guest.RenameFile(ctx, from, to)
}

// Remove removes a file or an empty directory; with recursive, a tree.
func (s *Service) Remove(ctx context.Context, owner, vmID, path string, recursive bool) error {
	guest, err := s.guest(ctx, owner, vmID, checkNew("path", path))
	if err != nil {
		return err
	}
	return guest.RemoveFile(ctx, path, recursive)
}

// ReadTree returns the file or tree at path as a tar archive.
func (s *Service) ReadTree(ctx context.Context, owner, vmID, path string) (io.ReadCloser, error) {
	guest, err := s.guest(ctx, owner, vmID, checkPath("path", path))
	if err != nil {
		return nil, err
	}
	return guest.ReadTree(ctx, path)
}

// WriteTree unpacks a tar archive below a directory.
func (s *Service) WriteTree(ctx context.Context, owner, vmID string, spec TreeSpec, archive io.Reader) error {
	guest, err := s.guest(ctx, owner, vmID, checkPath("path", spec.Path), checkOwner(spec.Owner))
	if err != nil {
		return err
	}
	return guest.WriteTree(ctx, spec, archive)
}

// Watch reports changes of path until ctx is done or report fails.
func (s *Service) Watch(ctx context.Context, owner, vmID, path string, recursive bool, began func(), report func(Change) error) error {
	guest, err := s.guest(ctx, owner, vmID, checkPath("path", path))
	if err != nil {
		return err
	}
	return guest.WatchFiles(ctx, path, recursive, began, report)
}

// guest returns the guest to work in, unless one of the checks has failed.
func (s *Service) guest(ctx context.Context, owner, vmID string, checks ...error) (Guest, error) {
	for _, err := range checks {
		if err != nil {
			return nil, err
		}
	}
	return s.guests.FileGuest(ctx, owner, vmID)
}

// checkPath refuses what is no absolute path of bytes.
func checkPath(field, p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return errs.InvalidField(field, "an absolute path is needed, such as /tmp/data")
	case strings.ContainsRune(p, 0):
		return errs.InvalidField(field, "a path has no NUL byte")
	case len(p) > MaxPath:
		return errs.InvalidField(field, "a path has up to %d bytes; this one has %d", MaxPath, len(p))
	}
	return nil
}

// checkNew refuses a path that cannot be written, moved or removed as one.
func checkNew(field, p string) error {
	if err := checkPath(field, p); err != nil {
		return err
	}
	if path.Clean(p) == "/" {
		return errs.InvalidField(field, "this cannot be done to the guest's root directory")
	}
	return nil
}

func checkMode(mode *uint32) error {
	if mode != nil && *mode > maxMode {
		return errs.InvalidField("mode", "%#o is no mode of a file; 0 to %#o can be given", *mode, maxMode)
	}
	return nil
}

var errOwner = errs.InvalidField("owner", "NAME or UID can be given, and :GROUP or :GID after it, such as 1000:1000")

func checkOwner(owner *Owner) error {
	if owner == nil || *owner == "" {
		return nil
	}
	user, group, hasGroup := strings.Cut(string(*owner), ":")
	if checkID(user) != nil || hasGroup && checkID(group) != nil {
		return errOwner
	}
	return nil
}

// checkID refuses what is no name and no number of a user or group. The
// highest number of 32 bits stands for none at all.
func checkID(id string) error {
	if id == "" || len(id) > maxOwner || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r == ':' || r == 0x7f }) {
		return errOwner
	}
	if strings.Trim(id, "0123456789") != "" {
		return nil // a name
	}
	if n, err := strconv.ParseUint(id, 10, 32); err != nil || n == 1<<32-1 {
		return errOwner
	}
	return nil
}
