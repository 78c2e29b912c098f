//go:build linux

package keyfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/host/keyfile"
	"github.com/hatchvm/hatch/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFileIsMadeOnceAndReplacedAsAWhole(t *testing.T) {
	dir := t.TempDir()
	f := keyfile.File{Path: filepath.Join(dir, keyfile.Name)}
	if _, err := f.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a missing file: %v", err)
	}
	made, err := f.Create()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(f.Path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := f.Create(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second key: %v", err)
	}
	if err := f.Add(made); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a key was replaced: %v", err)
	}
	other, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Store(append(secret.Identities{other}, made...)); err != nil {
		t.Fatal(err)
	}
	ids, err := f.Load()
	if err != nil || len(ids) != 2 || ids[0].String() != other.String() || ids[1].String() != made[0].String() {
		t.Errorf("%d identities, %v", len(ids), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestFilesOfOthersAreRefused(t *testing.T) {
	dir := t.TempDir()
	good := keyfile.File{Path: filepath.Join(dir, "good")}
	if _, err := good.Create(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		make func(path string) error
		want string
	}{
		"readable": {func(p string) error { return errors.Join(os.WriteFile(p, text, 0o600), os.Chmod(p, 0o640)) }, "other users may read"},
		"fifo":     {func(p string) error { return syscall.Mkfifo(p, 0o600) }, "not a regular file"},
		"dir":      {func(p string) error { return os.Mkdir(p, 0o700) }, "not a regular file"},
		"torn":     {func(p string) error { return os.WriteFile(p, text[:len(text)-9], 0o600) }, "not an identity"},
		"empty":    {func(p string) error { return os.WriteFile(p, nil, 0o600) }, "no identity"},
	} {
		f := keyfile.File{Path: filepath.Join(dir, name)}
		if err := c.make(f.Path); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Load(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := f.Create(); err == nil {
			t.Errorf("%s was replaced", name)
		}
	}
}

// A link stays one, and the key is where it leads.
func TestLinksAreFollowed(t *testing.T) {
	dir, safe := t.TempDir(), t.TempDir()
	f, target := keyfile.File{Path: filepath.Join(dir, "link")}, keyfile.File{Path: filepath.Join(safe, "key")}
	if err := os.Symlink(target.Path, f.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Create(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("where a link leads nowhere: %v", err)
	}
	made, err := target.Create()
	if err != nil {
		t.Fatal(err)
	}
	other, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Store(append(secret.Identities{other}, made...)); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(f.Path); err != nil || st.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link is %v, %v", st.Mode(), err)
	}
	if ids, err := target.Load(); err != nil || len(ids) != 2 {
		t.Errorf("%d identities, %v", len(ids), err)
	}
}

func TestUnfinishedFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	f := keyfile.File{Path: filepath.Join(dir, keyfile.Name)}
	if _, err := f.Create(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".secrets.key.123.tmp", ".secrets.key-old"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Clean(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 || left[0].Name() != ".secrets.key-old" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestFilesInMemoryAreVolatile(t *testing.T) {
	for path, want := range map[string]bool{"/dev/shm/no-such-key": true, "/proc/self/status": false} {
		if got, err := (keyfile.File{Path: path}).Volatile(); err != nil || got != want {
			t.Errorf("%s: %v, %v", path, got, err)
		}
	}
}
