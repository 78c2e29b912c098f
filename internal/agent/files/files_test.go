package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// buffer is a wire.FileWriter.
type buffer struct{ bytes.Buffer }

func (*buffer) Flush() error { return nil }

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func requireText(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %.40q (%v), want %.40q", path, got, err, want)
	}
}

func requireNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s has %q, want %q", dir, got, want)
	}
}

func requireRefusal(t *testing.T, err error, code string) {
	t.Helper()
	var refused *wire.RemoteError
	if !errors.As(err, &refused) || refused.Code != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

func write(f *Files, path, text string) error {
	_, err := f.WriteFile(context.Background(), wire.WriteFileArgs{Path: []byte(path)}, strings.NewReader(text))
	return err
}

func TestReplacedFileKeepsModeAndOwner(t *testing.T) {
	f, dir := New("/"), t.TempDir()
	path := filepath.Join(dir, "f")
	put(t, path, "old")
	if err := errors.Join(os.Chown(path, 12, 34), os.Chmod(path, 0o751|os.ModeSetuid), os.Link(path, path+".other")); err != nil {
		t.Fatal(err)
	}
	if err := write(f, path, "new"); err != nil {
		t.Fatal(err)
	}
	info, err := f.StatFile(t.Context(), wire.PathArgs{Path: []byte(path)})
	if err != nil || info.Mode != 0o4751 || info.UID != 12 || info.GID != 34 {
		t.Errorf("it is %+v, %v", info, err)
	}
	requireText(t, path, "new")
	requireText(t, path+".other", "old")
	mode, owner := uint32(0o600), "56:78"
	info, err = f.WriteFile(t.Context(), wire.WriteFileArgs{Path: []byte(path), Mode: &mode, Owner: &owner}, strings.NewReader("newer"))
	if err != nil || info.Mode != mode || info.UID != 56 || info.GID != 78 {
		t.Errorf("it is %+v, %v", info, err)
	}
	if err := write(f, dir+"/fresh", ""); err != nil {
		t.Fatal(err)
	}
	if info, err := f.StatFile(t.Context(), wire.PathArgs{Path: []byte(dir + "/fresh")}); err != nil || info.Mode != newMode || info.UID != 0 || info.User == nil {
		t.Errorf("a new file is %+v, %v", info, err)
	}
	requireNames(t, dir, "f", "f.other", "fresh")
}

func TestWriteFollowsLinks(t *testing.T) {
	f, dir := New("/"), t.TempDir()
	put(t, dir+"/data/real", "old")
	for link, target := range map[string]string{
		"relative": "data/real", "absolute": dir + "/data/real", "twice": "relative", "data/up": "../relative",
		"dangling": "data/fresh", "away": "no/such", "loop": "loop", "dirlink": "data",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"relative", "absolute", "twice", "data/up", "dirlink/real"} {
		if err := write(f, filepath.Join(dir, link), "by "+link); err != nil {
			t.Errorf("%s: %v", link, err)
		}
		requireText(t, dir+"/data/real", "by "+link)
	}
	if err := write(f, dir+"/dangling", "x"); err != nil {
		t.Error(err)
	}
	requireText(t, dir+"/data/fresh", "x")
	requireRefusal(t, write(f, dir+"/away", "x"), wire.CodeNotFound)
	requireRefusal(t, write(f, dir+"/loop", "x"), wire.CodeInvalidPath)
	requireRefusal(t, write(f, dir+"/dirlink", "x"), wire.CodeIsDirectory)
	requireRefusal(t, write(f, dir+"/data/..", "x"), wire.CodeIsDirectory)
	if st, err := os.Lstat(dir + "/relative"); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v, %v", st, err)
	}
}

func TestParentsBelongToTheOwner(t *testing.T) {
	f, dir := New("/"), t.TempDir()
	owner := "5:6"
	args := wire.WriteFileArgs{Path: []byte(dir + "/a/b/f"), Owner: &owner, Parents: true}
	if _, err := f.WriteFile(t.Context(), args, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/a", "/a/b", "/a/b/f"} {
		var st syscall.Stat_t
		if err := syscall.Stat(dir+path, &st); err != nil || st.Uid != 5 || st.Gid != 6 {
			t.Errorf("%s belongs to %d:%d, %v", path, st.Uid, st.Gid, err)
		}
	}
}

// TestPartialFilesOfAKilledAgentAreRemoved writes files beside partial files of another
// agent, and one of its own.
func TestPartialFilesOfAKilledAgentAreRemoved(t *testing.T) {
	f, dir := New("/"), t.TempDir()
	put(t, dir+"/"+partialPrefix+"0", "half")
	put(t, dir+"/"+partialPrefix+"77", "half")
	put(t, dir+"/"+partialPrefix+"by-another", "whole")
	slow, content := io.Pipe()
	slowDone := make(chan error, 1)
	go func() {
		_, err := f.WriteFile(t.Context(), wire.WriteFileArgs{Path: []byte(dir + "/slow")}, slow)
		slowDone <- err
	}()
	if _, err := io.WriteString(content, "begun"); err != nil {
		t.Fatal(err)
	}
	requireNames(t, dir, partialPrefix+"0", partialPrefix+"by-another")
	if err := write(f, dir+"/quick", "x"); err != nil {
		t.Fatal(err)
	}
	requireNames(t, dir, partialPrefix+"0", partialPrefix+"by-another", "quick")
	if err := errors.Join(content.Close(), <-slowDone); err != nil {
		t.Fatal(err)
	}
	requireText(t, dir+"/slow", "begun")
	requireNames(t, dir, partialPrefix+"by-another", "quick", "slow")
}

func TestNamesAreListedInPasses(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 100 {
		name := fmt.Sprintf("%x\xff%d", i*7919%100, i)
		put(t, filepath.Join(dir, name), "")
		want = append(want, name)
	}
	slices.Sort(want)
	for _, atOnce := range []int{1, 3, 50, 99, 100, 101} {
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := eachName(d, atOnce, func(name string) error { got = append(got, name); return nil }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d at once: %q", atOnce, got)
		}
		_ = d.Close()
	}
}

func TestUsersAndGroupsHaveNames(t *testing.T) {
	root := t.TempDir()
	put(t, root+"/etc/passwd", "root:x:0:0::/:\nfirst:x:5:5::/:\nsecond:x:5:5::/:\nbad line\n:::\n"+strings.Repeat("x", 100)+":x:9:9::/:\n")
	put(t, root+"/etc/group", "wheel:x:6:\n")
	put(t, root+"/f", "")
	if err := os.Chown(root+"/f", 5, 6); err != nil {
		t.Fatal(err)
	}
	f := New(root)
	info, err := f.StatFile(t.Context(), wire.PathArgs{Path: []byte(root + "/f")})
	if err != nil || string(info.User) != "first" || string(info.Group) != "wheel" {
		t.Errorf("it belongs to %q %q, %v", info.User, info.Group, err)
	}
}

func TestFileThatGetsShorterIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	put(t, path, strings.Repeat("x", 1<<20))
	args := wire.ReadFileArgs{Path: []byte(path), Length: -1}
	err := New("/").ReadFile(t.Context(), args, func(wire.FileInfo) error { return os.Truncate(path, 1000) }, &buffer{})
	requireRefusal(t, err, wire.CodeChanged)
}

func TestGeneratedFilesAreReadToTheirEnd(t *testing.T) {
	for _, path := range []string{"/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"} {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var out buffer
		var size int64
		args := wire.ReadFileArgs{Path: []byte(path), Length: -1}
		err = New("/").ReadFile(t.Context(), args, func(i wire.FileInfo) error { size = i.Size; return nil }, &out)
		if err != nil || size != wire.UnknownSize || out.Len() == 0 || out.String()[:8] != string(want[:8]) {
			t.Errorf("%s: %d bytes, of %d, %v", path, out.Len(), size, err)
		}
	}
}
