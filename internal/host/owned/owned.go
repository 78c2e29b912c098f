//go:build linux

// Package owned checks that no other user of the host can change what is in a
// directory, or put another directory in its place.
//
// It looks at owners and modes only: it knows no access control lists, and changes
// nothing. Start at [Check].
package owned

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// byOthers are the permissions of a group and of all users to change a directory.
const byOthers = 0o022

// Check returns an error, with what mends it, if another user than root and hatchd's own
// can write to the data directory dir, to a directory in it, to what a link in it leads
// to, or to a directory above one of these. A directory above may be writable for all
// users if it is sticky, as /tmp is, and for the group that hatchd runs with; with
// trustAbove those above are not checked at all. dir is absolute; links on the way to it
// are followed, and the directories with the links are checked, too.
func Check(dir string, trustAbove bool) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("cannot read the directory: %w", err)
	}
	if err := checkEntry(real); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot read the directory: %w", err)
	}
	above := []string{dir}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			above = append(above, path)
			err = checkLink(path)
		case e.IsDir():
			err = checkEntry(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // removed just now
			return err
		}
	}
	if trustAbove {
		return nil
	}
	for _, path := range above {
		if err := CheckAbove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w; or set HATCH_TRUST_DATA_DIR_PARENTS=true, if you trust those users with root's rights on this host", err)
		}
	}
	return nil
}

// checkLink checks what a link in the directory leads to. What is missing could be put
// there by another user.
func checkLink(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err != nil {
			return err
		}
		return fmt.Errorf("%s is a symbolic link that leads nowhere: remove it, or make what it leads to", path)
	}
	if err != nil {
		return fmt.Errorf("cannot follow %s: %w", path, err)
	}
	if err := checkOwner(path); err != nil {
		return err
	}
	return checkEntry(real)
}

// checkEntry checks the owner and the mode of a file or directory.
func checkEntry(path string) error {
	if err := checkOwner(path); err != nil {
		return err
	}
	return checkMode(path, byOthers)
}

// CheckAbove is Check for the directories above path alone.
func CheckAbove(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("cannot read the directory: %w", err)
	}
	if err := checkWay(filepath.Clean(path)); err != nil || real == filepath.Clean(path) {
		return err
	}
	return checkWay(real)
}

// checkWay checks each entry on the way to path, and the directory that it is in. The
// root directory itself is not checked: its owner owns everything.
func checkWay(path string) error {
	for path != "/" {
		if err := checkOwner(path); err != nil {
			return err
		}
		if path = filepath.Dir(path); path == "/" {
			return nil
		}
		st, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("cannot read the directory: %w", err)
		}
		others := fs.FileMode(byOthers)
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Gid) == os.Getegid() {
			others = 0o002
		}
		if st.Mode()&fs.ModeSticky == 0 {
			if err := checkMode(path, others); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkOwner checks the owner of an entry, of a link itself: in a sticky directory the
// owner may replace it.
func checkOwner(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("cannot read the directory: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || sys.Uid == 0 || int(sys.Uid) == os.Geteuid() {
		return nil
	}
	return fmt.Errorf("%s belongs to user %d, who could replace it; hatchd needs one that belongs to root, or to user %d: run chown -h %d %s, or choose another directory",
		path, sys.Uid, os.Geteuid(), os.Geteuid(), quote(path))
}

// checkMode checks that a file or directory has none of the permissions others.
func checkMode(dir string, others fs.FileMode) error {
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("cannot read the directory: %w", err)
	}
	if st.Mode()&others == 0 {
		return nil
	}
	return fmt.Errorf("other users can write to %s (its mode is %04o): run chmod go-w %s", dir, st.Mode().Perm(), quote(dir))
}

// quote quotes a path for a shell.
func quote(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+,@") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
