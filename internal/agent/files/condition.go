package files

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

var errUnmet = wire.Refuse(wire.CodeUnmet, "the file is not, or no longer, as the condition says")

// checkPath refuses a change of the file that path leads to unless the condition holds.
func checkPath(c *wire.FileCondition, path string) error {
	var st unix.Stat_t
	return check(c, &st, unix.Stat(path, &st))
}

// check refuses a change unless the condition holds for a file whose stat is st, or for
// none. err is what stat returned.
func check(c *wire.FileCondition, st *unix.Stat_t, err error) error {
	if c == nil {
		return nil
	}
	exists := !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR)
	if exists && err != nil {
		return err
	}
	is := func(all *wire.FileVersions) bool {
		return exists && (all.Any || slices.Contains(all.List, wire.FileVersion{ModifiedNanos: st.Mtim.Nano(), Size: st.Size}))
	}
	switch {
	case c.Match != nil && !is(c.Match),
		c.NoneMatch != nil && is(c.NoneMatch),
		c.NotAfter != nil && (!exists || st.Mtim.Sec > *c.NotAfter):
		return errUnmet
	}
	return nil
}

// moveIf gives a partial file its name if the condition holds. No other change that
// hatchd has asked for comes in between; one that a program of the guest makes can,
// unless the condition is that there is no file.
func (f *Files) moveIf(c *wire.FileCondition, part *partial, name string) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	var st unix.Stat_t
	if err := check(c, &st, unix.Fstatat(part.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)); err != nil {
		return err
	}
	if c != nil && c.NoneMatch != nil && c.NoneMatch.Any {
		err := unix.Renameat2(part.dir, part.name, part.dir, name, unix.RENAME_NOREPLACE)
		switch {
		case errors.Is(err, unix.EEXIST):
			return errUnmet
		case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS): // of a file system that cannot
			return err
		}
	}
	return unix.Renameat(part.dir, part.name, part.dir, name)
}
