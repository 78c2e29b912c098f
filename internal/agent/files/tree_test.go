package files

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// pack returns an archive of entries. A regular file contains its own name.
func pack(t *testing.T, entries ...tar.Header) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
func dir(name string) tar.Header  { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }

func symlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

func hardlink(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// TestUnpackWritesNothingOutside unpacks archives that try to change a file and a
// directory beside the target directory.
func TestUnpackWritesNothingOutside(t *testing.T) {
	for name, c := range map[string]struct {
		entries []tar.Header
		prepare func(to string) error // creates files before
		refused bool
	}{
		"dots":                        {entries: []tar.Header{file("../outside/f")}, refused: true},
		"dots within":                 {entries: []tar.Header{file("a/../../outside/f")}, refused: true},
		"absolute":                    {entries: []tar.Header{file("/outside/f")}},
		"link out, then through":      {entries: []tar.Header{symlink("l", "../outside"), file("l/f")}, refused: true},
		"absolute link":               {entries: []tar.Header{symlink("l", "OUTSIDE"), file("l/f")}, refused: true},
		"link out, then a directory":  {entries: []tar.Header{symlink("l", "../outside"), dir("l"), file("l/f")}, refused: true},
		"link through links":          {entries: []tar.Header{symlink("a", "."), symlink("a/b", ".."), file("a/b/outside/f")}, refused: true},
		"link to a file, then it":     {entries: []tar.Header{symlink("l", "../outside/kept"), file("l")}},
		"hard link out":               {entries: []tar.Header{hardlink("l", "../outside/kept")}, refused: true},
		"absolute hard link":          {entries: []tar.Header{hardlink("l", "OUTSIDE/kept")}, refused: true},
		"hard link through a link":    {entries: []tar.Header{symlink("d", "../outside"), hardlink("l", "d/kept"), file("l")}, refused: true},
		"hard link to a link":         {entries: []tar.Header{symlink("d", "../outside/kept"), hardlink("l", "d"), file("l")}},
		"the guest's link":            {entries: []tar.Header{file("l/f")}, refused: true, prepare: func(to string) error { return os.Symlink("../outside", to+"/l") }},
		"the guest's link to a file":  {entries: []tar.Header{file("l")}, prepare: func(to string) error { return os.Symlink("../outside/kept", to+"/l") }},
		"the guest's hard link":       {entries: []tar.Header{file("l")}, prepare: func(to string) error { return os.Link(filepath.Dir(to)+"/outside/kept", to+"/l") }},
		"mode through the guest's":    {entries: []tar.Header{dir("l")}, refused: true, prepare: func(to string) error { return os.Symlink("../outside", to+"/l") }},
		"directory in a file's place": {entries: []tar.Header{file("x"), file("x/y")}, refused: true},
		"file in a directory's place": {entries: []tar.Header{dir("x"), file("x")}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			to := above + "/to"
			mkdir(t, to)
			put(t, above+"/outside/kept", "kept")
			if err := os.Chmod(above+"/outside", 0o711); err != nil {
				t.Fatal(err)
			}
			if c.prepare != nil {
				if err := c.prepare(to); err != nil {
					t.Fatal(err)
				}
			}
			for i := range c.entries {
				c.entries[i].Linkname = strings.ReplaceAll(c.entries[i].Linkname, "OUTSIDE", above+"/outside")
			}
			err := New("/").WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(to)}, pack(t, c.entries...))
			if (err != nil) != c.refused {
				t.Errorf("got %v", err)
			}
			requireNames(t, above, "outside", "to")
			requireNames(t, above+"/outside", "kept")
			requireText(t, above+"/outside/kept", "kept")
			if st, err := os.Stat(above + "/outside"); err != nil || st.Mode().Perm() != 0o711 {
				t.Errorf("the directory outside is %v, %v", st.Mode(), err)
			}
		})
	}
}

func TestUnpackedFilesModesAndOwners(t *testing.T) {
	f, to := New("/"), t.TempDir()
	put(t, to+"/real/old", "old")
	put(t, to+"/replaced", "a long text that is replaced")
	if err := os.Symlink("real", to+"/link"); err != nil {
		t.Fatal(err)
	}
	set := file("set")
	set.Mode, set.Uid, set.Gid = 0o6755, 12, 34
	archive := pack(t, dir("./"), set, file("replaced"), dir("link"), file("link/new"), file("deep/er/f"),
		tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1, Devminor: 3}, tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"},
		hardlink("set", "set"), hardlink("hard", "link/new"))
	if err := f.WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(to)}, bytes.NewReader(archive.Bytes())); err != nil {
		t.Fatal(err)
	}
	requireNames(t, to, "deep", "hard", "link", "real", "replaced", "set")
	requireText(t, to+"/replaced", "replaced")
	requireText(t, to+"/real/new", "link/new")
	requireText(t, to+"/hard", "link/new")
	requireText(t, to+"/deep/er/f", "deep/er/f")
	requireOwner(t, to+"/set", 12, 34, 0o755|os.ModeSetuid|os.ModeSetgid)

	owner := "5:6"
	if err := f.WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(to), Owner: &owner}, archive); err != nil {
		t.Fatal(err)
	}
	requireOwner(t, to+"/set", 5, 6, 0o755)
	requireOwner(t, to+"/deep/er", 0, 0, 0o755|os.ModeDir) // existed before
}

func requireOwner(t *testing.T, path string, uid, gid uint32, mode os.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid || info.Mode() != mode {
		t.Errorf("%s is %v of %d:%d", path, info.Mode(), st.Uid, st.Gid)
	}
}

func TestBrokenArchiveLeavesNoPartialFile(t *testing.T) {
	to, gone := t.TempDir(), errors.New("gone")
	whole := pack(t, file("first"), file(strings.Repeat("long/", 100)+"second")).Bytes()
	err := New("/").WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(to)}, io.MultiReader(bytes.NewReader(whole[:len(whole)-1600]), iotest.ErrReader(gone)))
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	requireText(t, to+"/first", "first")
	if matches, err := filepath.Glob(to + "/" + strings.Repeat("*/", 100) + "*"); err != nil || matches != nil {
		t.Errorf("found %v, %v", matches, err)
	}
}

// TestTarUnpacksAPackedTree runs the system's tar.
func TestTarUnpacksAPackedTree(t *testing.T) {
	above := t.TempDir()
	put(t, above+"/tree/not\xffutf8/"+strings.Repeat("long", 50), "text")
	put(t, above+"/tree/plain", strings.Repeat("x", 100_000))
	if err := errors.Join(os.Symlink("to\xffnowhere", above+"/tree/link"), os.Link(above+"/tree/plain", above+"/tree/zlink"),
		syscall.Mkfifo(above+"/tree/pipe", 0o644), syscall.Mkdir(above+"/to", 0o755)); err != nil {
		t.Fatal(err)
	}
	var archive buffer
	if err := New("/").ReadTree(t.Context(), wire.PathArgs{Path: []byte(above + "/tree")}, func() error { return nil }, &archive); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tar", "-x", "-C", above+"/to")
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	requireNames(t, above+"/to/tree", "link", "not\xffutf8", "plain", "zlink")
	requireText(t, above+"/to/tree/not\xffutf8/"+strings.Repeat("long", 50), "text")
	requireText(t, above+"/to/tree/zlink", strings.Repeat("x", 100_000))
	if target, err := os.Readlink(above + "/to/tree/link"); err != nil || target != "to\xffnowhere" {
		t.Errorf("the link leads to %q, %v", target, err)
	}
}

func TestArchiveNames(t *testing.T) {
	for path, want := range map[string]string{
		"/": ".", "//": ".", "/a": "a", "/a/": "a", "/a/b": "b", "/a/b//": "b", "/a/..": ".", "/a/.": ".",
	} {
		if got := archiveName(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

// TestFilesMayChangeDuringAPack truncates and removes files meanwhile.
func TestFilesMayChangeDuringAPack(t *testing.T) {
	top := t.TempDir()
	put(t, top+"/a/short", strings.Repeat("x", 300_000))
	put(t, top+"/b/vanishes", "x")
	put(t, top+"/c/last", "last")
	w := &hookedBuffer{do: func() {
		if err := errors.Join(os.Truncate(top+"/a/short", 1000), os.RemoveAll(top+"/b")); err != nil {
			t.Error(err)
		}
	}}
	if err := New("/").ReadTree(t.Context(), wire.PathArgs{Path: []byte(top)}, func() error { return nil }, w); err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	if err := New("/").WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(to)}, &w.Buffer); err != nil {
		t.Fatal(err)
	}
	requireNames(t, to+"/"+filepath.Base(top), "a", "c")
	if st, err := os.Stat(to + "/" + filepath.Base(top) + "/a/short"); err != nil || st.Size() != 300_000 {
		t.Errorf("the file that got shorter: %v, %v", st, err)
	}
}

// hookedBuffer calls do after its first bytes.
type hookedBuffer struct {
	buffer
	do func()
}

func (m *hookedBuffer) Write(p []byte) (int, error) {
	if m.do != nil && m.Len() > 4096 {
		m.do()
		m.do = nil
	}
	return m.buffer.Write(p)
}

func TestDirectoriesKeepTheirTimes(t *testing.T) {
	to, at := t.TempDir(), time.Unix(1_000_000_000, 0)
	entries := []tar.Header{dir("d"), dir("d/e"), file("d/e/f"), file("d/g"), file("h")}
	for i := range entries {
		entries[i].ModTime = at
	}
	if err := New("/").WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(to)}, pack(t, entries...)); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if st, err := os.Stat(to + "/" + e.Name); err != nil || !st.ModTime().Equal(at) {
			t.Errorf("the time of %s is %v, %v", e.Name, st.ModTime(), err)
		}
	}
}

// FuzzUnpack unpacks any bytes, which must not write outside the target directory.
func FuzzUnpack(f *testing.F) {
	var t testing.T
	f.Add(pack(&t, symlink("l", "../outside"), file("l/f"), hardlink("h", "l")).Bytes())
	f.Add(pack(&t, dir("a"), symlink("a/b", "/"), file("a/b/c"), file("../x")).Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		above := t.TempDir()
		mkdir(t, above+"/to")
		put(t, above+"/outside/kept", "kept")
		_ = New("/").WriteTree(t.Context(), wire.WriteTreeArgs{Path: []byte(above + "/to")}, bytes.NewReader(raw))
		requireNames(t, above, "outside", "to")
		requireNames(t, above+"/outside", "kept")
		requireText(t, above+"/outside/kept", "kept")
	})
}
