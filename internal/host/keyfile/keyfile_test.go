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
	if _, err := f.Create(); err == nil {
		t.Error("a key was replaced")
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
