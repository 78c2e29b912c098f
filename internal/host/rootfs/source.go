//go:build linux

package rootfs

import (
	"errors"
	"fmt"
	"os"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

// source opens the files that a registration names, and those beside them.
type source interface {
	// file opens a regular file that is not empty. Its errors are for the client, and
	// name the field.
	file(field, path string) (*os.File, error)

	// dir opens a directory.
	dir(path string) (*os.Root, error)
}

// sourceOf returns the source for a registration: only the operator may name any path
// of the host.
func (i *Inspector) sourceOf(r image.Registration) source {
	if r.Trusted {
		return anywhere{}
	}
	return allowed{i.config.Dirs}
}

// anywhere is the source for paths of hatchd itself and of its operator.
type anywhere struct{}

func (anywhere) file(field, path string) (*os.File, error) { return openRegular(field, path) }
func (anywhere) dir(path string) (*os.Root, error)         { return os.OpenRoot(path) }

// allowed is the source for paths of clients. All refusals read the same, so that they
// do not tell what exists on the host; only their causes differ, which the log gets.
type allowed struct{ dirs *Dirs }

func (a allowed) file(field, path string) (*os.File, error) {
	f, err := a.dirs.open(path)
	if err != nil {
		return nil, refuse(field, path, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errKind
	}
	if err != nil {
		return nil, errors.Join(refuse(field, path, err), f.Close())
	}
	if st.Size() == 0 {
		return nil, errors.Join(errs.InvalidField(field, "the file is empty"), f.Close())
	}
	return f, nil
}

// dir returns an error for a file.
func (a allowed) dir(path string) (*os.Root, error) {
	f, err := a.dirs.open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return os.OpenRoot(descriptor(int(f.Fd())))
}

// refuse returns the one answer for a path of a client that cannot be used.
func refuse(field, path string, why error) error {
	return errs.InvalidField(field, "want a regular file, or for modules_path a directory, below a directory that HATCH_IMAGE_DIRS lists").
		WithHint("the operator of hatchd decides which directories images come from; there, no part of the path may be a symbolic link, and no user but root may be able to change it. The log of hatchd has the reason of a refusal").
		WithCause(fmt.Errorf("%q: %w", path, why))
}
