//go:build linux

package owned

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// nested makes one directory in another below a temporary one, whose modes are set
// independent of the umask.
func nested(t *testing.T) (above, dir string) {
	t.Helper()
	above, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(above, "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for path := above; strings.HasPrefix(path, os.TempDir()+"/"); path = filepath.Dir(path) {
		chmod(t, path, 0o755)
	}
	return above, dir
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, above, dir string)
		says   []string // nil: it is accepted
	}{
		"private":               {func(*testing.T, string, string) {}, nil},
		"readable":              {func(t *testing.T, _, dir string) { chmod(t, dir, 0o755) }, nil},
		"writable for all":      {func(t *testing.T, _, dir string) { chmod(t, dir, 0o777) }, []string{"data", "0777", "chmod go-w "}},
		"writable for a group":  {func(t *testing.T, _, dir string) { chmod(t, dir, 0o770) }, []string{"data", "0770", "chmod go-w "}},
		"writable but sticky":   {func(t *testing.T, _, dir string) { chmod(t, dir, 0o777|os.ModeSticky) }, []string{"data"}},
		"a directory in it":     {func(t *testing.T, _, dir string) { makeIn(t, dir, "vms", 0o777) }, []string{"data/vms", "chmod go-w "}},
		"a file in it":          {func(t *testing.T, _, dir string) { writeIn(t, dir, "hatchd.log", 0o666) }, nil},
		"above, for all":        {func(t *testing.T, above, _ string) { chmod(t, above, 0o777) }, []string{"0777", "chmod go-w "}},
		"above, but sticky":     {func(t *testing.T, above, _ string) { chmod(t, above, 0o777|os.ModeSticky) }, nil},
		"above, for its group":  {func(t *testing.T, above, _ string) { chmod(t, above, 0o775) }, nil},
		"a quote in the path":   {func(t *testing.T, _, dir string) { makeIn(t, dir, "it's", 0o777) }, []string{`'\''s'`}},
		"nothing is there":      {func(t *testing.T, _, dir string) { remove(t, dir) }, []string{"cannot read"}},
		"a file, no directory":  {func(t *testing.T, _, dir string) { remove(t, dir); writeIn(t, filepath.Dir(dir), "data", 0o600) }, []string{"cannot read"}},
		"a link leads there":    {func(t *testing.T, above, dir string) { moveBehindLink(t, above, dir, 0o700) }, nil},
		"a link leads outwards": {func(t *testing.T, above, dir string) { moveBehindLink(t, above, dir, 0o777) }, []string{"elsewhere", "0777"}},
		"a link in it":          {func(t *testing.T, above, dir string) { linkIn(t, above, dir, 0o700) }, nil},
		"a link in it, for all": {func(t *testing.T, above, dir string) { linkIn(t, above, dir, 0o777) }, []string{"target", "0777", "chmod go-w "}},
		"a link to nothing": {func(t *testing.T, above, dir string) {
			linkIn(t, above, dir, 0o700)
			remove(t, filepath.Join(above, "target"))
		}, []string{"data/vms", "leads nowhere"}},
		"a link to a file": {func(t *testing.T, above, dir string) {
			linkIn(t, above, dir, 0o700)
			remove(t, filepath.Join(above, "target"))
			writeIn(t, above, "target", 0o666)
		}, []string{"target", "0666"}},
	} {
		t.Run(name, func(t *testing.T) {
			above, dir := nested(t)
			c.change(t, above, dir)
			err := Check(dir, false)
			if (err != nil) != (c.says != nil) {
				t.Fatalf("got %v", err)
			}
			for _, text := range c.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q is not in: %v", text, err)
				}
			}
		})
	}
}

// TestTrustedParents has directories above that others can change; the data directory
// itself, and what is in it, must still be safe.
func TestTrustedParents(t *testing.T) {
	above, dir := nested(t)
	chmod(t, above, 0o777)
	if err := Check(dir, false); err == nil || !strings.Contains(err.Error(), "HATCH_TRUST_DATA_DIR_PARENTS=true") {
		t.Errorf("not trusted: %v", err)
	}
	if err := Check(dir, true); err != nil {
		t.Errorf("trusted: %v", err)
	}
	linkIn(t, above, dir, 0o700)
	if err := Check(dir, true); err != nil {
		t.Errorf("with a link: %v", err)
	}
	chmod(t, filepath.Join(above, "target"), 0o777)
	if err := Check(dir, true); err == nil {
		t.Error("what a link leads to may be written to by all")
	}
	remove(t, filepath.Join(dir, "vms"))
	chmod(t, dir, 0o777)
	if err := Check(dir, true); err == nil || strings.Contains(err.Error(), "HATCH_TRUST") {
		t.Errorf("the directory itself: %v", err)
	}
}

// linkIn makes a link in dir to a directory beside it with that mode.
func linkIn(t *testing.T, above, dir string, mode os.FileMode) {
	t.Helper()
	makeIn(t, above, "target", mode)
	if err := os.Symlink(filepath.Join(above, "target"), filepath.Join(dir, "vms")); err != nil {
		t.Fatal(err)
	}
}

// moveBehindLink moves the directory into another one with that mode, and leaves a
// link to it.
func moveBehindLink(t *testing.T, above, dir string, mode os.FileMode) {
	t.Helper()
	makeIn(t, above, "elsewhere", mode)
	to := filepath.Join(above, "elsewhere", "real")
	if err := os.Rename(dir, to); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, dir); err != nil {
		t.Fatal(err)
	}
}

func makeIn(t *testing.T, dir, name string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, mode)
}

func writeIn(t *testing.T, dir, name string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	chmod(t, path, mode)
}

func remove(t *testing.T, dir string) {
	t.Helper()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
}
