package file

import (
	"context"
	"io"
	"path"
	"strconv"
	"strings"
	"sync"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// Bounds of arguments.
const (
	MaxPath  = 4096 // bytes, as Linux has it
	maxOwner = 64   // bytes of a user's or group's name
	maxMode  = 0o7777
)

// Service works on files in guests. Its methods are those of [Guest], for a VM that
// the scope sees, and return errs.Invalid for invalid arguments. Their other
// errors are those of [Guests] and [Guest].
type Service struct {
	guests Guests
}

// New returns a service that works in guests.
func New(guests Guests) *Service { return &Service{guests: guests} }

// Read opens a part of a regular file.
func (s *Service) Read(ctx context.Context, scope access.Scope, vmID string, spec ReadSpec) (Info, io.ReadCloser, error) {
	guest, release, err := s.open(ctx, scope, vmID, checkPath("path", spec.Path))
	if err != nil {
		return Info{}, nil, err
	}
	var info Info
	content, err := inUse(release, func() (content io.ReadCloser, err error) {
		info, content, err = guest.ReadFile(ctx, spec)
		return content, err
	})
	return info, content, err
}

// Write writes a file, and returns when it has replaced the old one.
func (s *Service) Write(ctx context.Context, scope access.Scope, vmID string, spec WriteSpec, content io.Reader) (Info, error) {
	guest, release, err := s.open(ctx, scope, vmID, checkNew("path", spec.Path), checkMode(spec.Mode), checkOwner(spec.Owner))
	if err != nil {
		return Info{}, err
	}
	defer release()
	return guest.WriteFile(ctx, spec, content)
}

// Stat describes a file, and a link itself.
func (s *Service) Stat(ctx context.Context, scope access.Scope, vmID, path string) (Info, error) {
	guest, release, err := s.open(ctx, scope, vmID, checkPath("path", path))
	if err != nil {
		return Info{}, err
	}
	defer release()
	return guest.StatFile(ctx, path)
}

// List calls each for the directory's entries, sorted by name.
func (s *Service) List(ctx context.Context, scope access.Scope, vmID, path string, each func(Info) error) error {
	guest, release, err := s.open(ctx, scope, vmID, checkPath("path", path))
	if err != nil {
		return err
	}
	defer release()
	return guest.ListFiles(ctx, path, each)
}

// DirectorySpec describes a directory to make.
type DirectorySpec struct {
	Path    string
	Mode    uint32
	Owner   Owner
	Parents bool // make missing ones above it, too; an existing one is no error
}

// MakeDirectory makes a directory.
func (s *Service) MakeDirectory(ctx context.Context, scope access.Scope, vmID string, spec DirectorySpec) (Info, error) {
	guest, release, err := s.open(ctx, scope, vmID, checkPath("path", spec.Path), checkMode(&spec.Mode), checkOwner(&spec.Owner))
	if err != nil {
		return Info{}, err
	}
	defer release()
	return guest.MakeDirectory(ctx, spec.Path, spec.Mode, spec.Owner, spec.Parents)
}

// Rename moves a file, and replaces one at the new path.
func (s *Service) Rename(ctx context.Context, scope access.Scope, vmID, from, to string) (Info, error) {
	guest, release, err := s.open(ctx, scope, vmID, checkNew("from", from), checkNew("to", to))
	if err != nil {
		return Info{}, err
	}
	defer release()
	return guest.RenameFile(ctx, from, to)
}

// Remove removes a file or an empty directory; with Recursive, a tree.
func (s *Service) Remove(ctx context.Context, scope access.Scope, vmID string, spec RemoveSpec) error {
	guest, release, err := s.open(ctx, scope, vmID, checkNew("path", spec.Path))
	if err != nil {
		return err
	}
	defer release()
	return guest.RemoveFile(ctx, spec)
}

// ReadTree returns the file or tree at path as a tar archive.
func (s *Service) ReadTree(ctx context.Context, scope access.Scope, vmID, path string) (io.ReadCloser, error) {
	guest, release, err := s.open(ctx, scope, vmID, checkPath("path", path))
	if err != nil {
		return nil, err
	}
	return inUse(release, func() (io.ReadCloser, error) { return guest.ReadTree(ctx, path) })
}

// WriteTree unpacks a tar archive below a directory.
func (s *Service) WriteTree(ctx context.Context, scope access.Scope, vmID string, spec TreeSpec, archive io.Reader) error {
	guest, release, err := s.open(ctx, scope, vmID, checkPath("path", spec.Path), checkOwner(spec.Owner))
	if err != nil {
		return err
	}
	defer release()
	return guest.WriteTree(ctx, spec, archive)
}

// Watch reports changes of path until ctx is done or report fails.
func (s *Service) Watch(ctx context.Context, scope access.Scope, vmID, path string, recursive bool, began func(), report func(Change) error) error {
	guest, release, err := s.open(ctx, scope, vmID, checkPath("path", path))
	if err != nil {
		return err
	}
	defer release()
	return guest.WatchFiles(ctx, path, recursive, began, report)
}

// open opens the VM's guest, unless one of the checks has failed.
func (s *Service) open(ctx context.Context, scope access.Scope, vmID string, checks ...error) (Guest, func(), error) {
	for _, err := range checks {
		if err != nil {
			return nil, nil, err
		}
	}
	return s.guests.Open(ctx, scope, vmID, Wake)
}

// inUse releases a guest when the content that open returns is closed, and at once
// when open fails.
func inUse(release func(), open func() (io.ReadCloser, error)) (opened io.ReadCloser, err error) {
	defer func() {
		if opened == nil {
			release()
		}
	}()
	c, err := open()
	if err != nil {
		return nil, err
	}
	return &content{ReadCloser: c, release: sync.OnceFunc(release)}, nil
}

// content is a content of a guest in use.
type content struct {
	io.ReadCloser
	release func()
}

// WriteTo implements [io.WriterTo], for a content that does so.
func (c *content) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, c.ReadCloser) }

// Close implements [io.Closer].
func (c *content) Close() error {
	defer c.release()
	return c.ReadCloser.Close()
}

// checkPath refuses what is no absolute path.
func checkPath(field, p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return errs.InvalidField(field, "must be an absolute path, such as /tmp/data")
	case strings.ContainsRune(p, 0):
		return errs.InvalidField(field, "has a NUL byte, which no path can have")
	case len(p) > MaxPath:
		return errs.InvalidField(field, "is %d bytes; the limit is %d", len(p), MaxPath)
	}
	return nil
}

// checkNew refuses paths that cannot be written, moved or removed.
func checkNew(field, p string) error {
	if err := checkPath(field, p); err != nil {
		return err
	}
	if path.Clean(p) == "/" {
		return errs.InvalidField(field, "must not be the guest's root directory")
	}
	return nil
}

func checkMode(mode *uint32) error {
	if mode != nil && *mode > maxMode {
		return errs.InvalidField("mode", "%#o is not a mode of a file; want 0 to %#o", *mode, maxMode)
	}
	return nil
}

var errOwner = errs.InvalidField("owner", "must be NAME or UID, optionally followed by :GROUP or :GID, such as 1000:1000")

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

// checkID refuses what is neither a name nor a number of a user or group. Linux
// takes the highest number of 32 bits as no user.
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
