package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

// openRegular opens a file that a field of the request names: the absolute path of
// a regular file that is not empty, or of a link to one.
func openRegular(field, path string) (*os.File, error) {
	switch {
	case path == "":
		return nil, errs.InvalidField(field, "the absolute path of a file on hatchd's host is needed")
	case strings.ContainsRune(path, 0) || len(path) > 4096:
		return nil, errs.InvalidField(field, "not a path")
	case !filepath.IsAbs(path):
		return nil, errs.InvalidField(field, "%q is not an absolute path", path).
			WithHint("give the whole path of the file on hatchd's host, beginning with /")
	}
	// Before the open, which could wait at a pipe or wake a device.
	st, err := os.Stat(path)
	if err != nil {
		return nil, cannotRead(field, path, err)
	}
	if err := checkRegular(field, path, st); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, cannotRead(field, path, err)
	}
	st, err = f.Stat()
	if err == nil {
		err = checkRegular(field, path, st)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func checkRegular(field, path string, st fs.FileInfo) error {
	switch {
	case st.IsDir():
		return errs.InvalidField(field, "%s is a directory; a file is needed", path)
	case st.Mode()&fs.ModeDevice != 0:
		return errs.InvalidField(field, "%s is a device; a regular file is needed", path).
			WithHint("copy its content to a file")
	case !st.Mode().IsRegular():
		return errs.InvalidField(field, "%s is not a regular file", path)
	case st.Size() == 0:
		return errs.InvalidField(field, "%s is empty", path)
	}
	return nil
}

func cannotRead(field, path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return errs.InvalidField(field, "there is no file %s on hatchd's host", path).
			WithHint("the path must be of the host where hatchd runs; a link must lead to a file")
	case errors.Is(err, fs.ErrPermission):
		return errs.InvalidField(field, "hatchd may not read %s", path).
			WithHint("hatchd runs as user %d; make the file and the directories above readable for it", os.Geteuid())
	case errors.Is(err, syscall.ELOOP):
		return errs.InvalidField(field, "%s is a link that leads to itself", path)
	case errors.Is(err, syscall.ENAMETOOLONG):
		return errs.InvalidField(field, "the path is too long")
	}
	return errs.InvalidField(field, "%s cannot be read", path).WithCause(err)
}

// identify reads the whole file for its digest. It refuses a file that changes
// during the read.
func identify(ctx context.Context, field, path string, f *os.File) (image.File, error) {
	before, err := f.Stat()
	if err != nil {
		return image.File{}, cannotRead(field, path, err)
	}
	digest := sha256.New()
	if err := copyContext(ctx, digest, io.NewSectionReader(f, 0, before.Size())); err != nil {
		if ctx.Err() != nil {
			return image.File{}, ctx.Err()
		}
		return image.File{}, cannotRead(field, path, err)
	}
	after, err := f.Stat()
	if err != nil {
		return image.File{}, cannotRead(field, path, err)
	}
	if !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size() {
		return image.File{}, errs.InvalidField(field, "%s was written to while it was read", path).
			WithHint("wait until the file is complete, then try again")
	}
	file := identityOf(path, after)
	file.Digest = "sha256:" + hex.EncodeToString(digest.Sum(nil))
	return file, nil
}

// Stat identifies a file without its digest.
func Stat(path string) (image.File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return image.File{}, err
	}
	return identityOf(path, st), nil
}

func identityOf(path string, st fs.FileInfo) image.File {
	f := image.File{Path: path, Size: st.Size(), ModTime: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		f.Inode = sys.Ino
	}
	return f
}

// Unchanged implements image.Inspector. It is false for a file below a private directory,
// which an image may name that was registered before such paths were refused.
func (i *Inspector) Unchanged(f image.File) bool {
	if !Unchanged(f) {
		return false
	}
	real, err := filepath.EvalSymlinks(f.Path)
	if err != nil {
		return false
	}
	for _, dir := range i.config.Private {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil && within(real, resolved) {
			return false
		}
	}
	return true
}

// Unchanged reports whether the file on disk is still f, by size, inode and
// modification time. Times are compared to the microsecond, as they are stored.
func Unchanged(f image.File) bool {
	now, err := Stat(f.Path)
	return err == nil && now.Inode == f.Inode && now.Size == f.Size &&
		now.ModTime.Truncate(time.Microsecond).Equal(f.ModTime.Truncate(time.Microsecond))
}

// copyContext copies r to w until ctx is done.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) error {
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return fmt.Errorf("cannot copy: %w", werr)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
