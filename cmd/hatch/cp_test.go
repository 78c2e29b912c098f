package main

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
)

// fakeFiles is what a VM sends, whether it is true or not.
type fakeFiles struct {
	kinds    map[string]string // by path; nothing else is there
	targets  map[string]string // of links
	content  string            // of any file
	tree     []byte            // of any tree
	cut      bool              // content and trees break off at their end
	uploaded map[string]string // bodies by request
}

func (f *fakeFiles) routes(mux *http.ServeMux) {
	f.uploaded = map[string]string{}
	mux.HandleFunc("GET /vms/{id}/files/stat", func(w http.ResponseWriter, r *http.Request) {
		p := r.FormValue("path")
		if p = strings.TrimRight(p, "/"); f.kinds[p] == "" {
			reply(w, 404, api.Problem{Status: 404, Error: p + ": there is no such file", Code: "file_not_found"})
			return
		}
		reply(w, 200, api.File{Path: p, Name: path.Base(p), Kind: f.kinds[p], Target: f.targets[p], Mode: "4755", Size: int64(len(f.content)), ModifiedAt: api.Time{Time: testNow}})
	})
	mux.HandleFunc("GET /vms/{id}/files", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Hatch-File-Mode", "4755")
		w.Header().Set("Content-Length", strconv.Itoa(len(f.content)+map[bool]int{true: 1}[f.cut]))
		_, _ = io.WriteString(w, f.content)
	})
	mux.HandleFunc("GET /vms/{id}/files/tar", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(f.tree)
		if f.cut {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	take := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			reply(w, 400, api.Problem{Status: 400, Error: "the body ended early", Code: "body_cut_short"})
			return
		}
		f.uploaded[r.RequestURI] = string(body)
		reply(w, 200, api.File{})
	}
	mux.HandleFunc("PUT /vms/{id}/files", take)
	mux.HandleFunc("PUT /vms/{id}/files/tar", take)
}

// archive packs entries. One whose name ends with a slash is a directory, one
// with a target a link.
func archive(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	for _, h := range entries {
		content := ""
		switch {
		case h.Typeflag != 0:
		case strings.HasSuffix(h.Name, "/"):
			h.Typeflag = tar.TypeDir
		case h.Linkname != "":
			h.Typeflag = tar.TypeSymlink
		default:
			content = "from the VM"
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.ModTime = testNow
		if err := out.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(out, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// listing returns the files below dir: name, kind and, of a file, its content.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		switch {
		case d.IsDir():
			rel += "/"
		case d.Type() == fs.ModeSymlink:
			target, _ := os.Readlink(name)
			rel += " -> " + target
		default:
			content, _ := os.ReadFile(name)
			rel += " = " + string(content)
		}
		all = append(all, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

// TestHostileTrees sends what must not be written, and looks for it outside.
func TestHostileTrees(t *testing.T) {
	device := tar.Header{Name: "t/dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}
	for name, c := range map[string]struct {
		args    []string
		entries []tar.Header
		code    int
		inside  string // what is below the destination afterwards
		says    string
	}{
		"dots":               {nil, []tar.Header{{Name: "t/"}, {Name: "t/../../evil"}}, exitOwn, "", "leads out of the tree"},
		"dots at first":      {nil, []tar.Header{{Name: "../evil"}}, exitOwn, "", "leads out of the tree"},
		"absolute":           {nil, []tar.Header{{Name: "/tmp/evil"}}, exitOwn, "", "leads out of the tree"},
		"through a link":     {[]string{"-a"}, []tar.Header{{Name: "t/l", Linkname: "../.."}, {Name: "t/l/evil"}}, exitOwn, "l -> ../..", "escapes"},
		"a link over a file": {[]string{"-a"}, []tar.Header{{Name: "t/l", Linkname: "../secret"}, {Name: "t/l"}}, 0, "l = from the VM", ""},
		"a hard link out":    {nil, []tar.Header{{Name: "t/h", Linkname: "t/../../secret", Typeflag: tar.TypeLink}}, exitOwn, "", "leads out of the tree"},
		"a hard link to a link out": {
			[]string{"-a"},
			[]tar.Header{{Name: "t/l", Linkname: "../.."}, {Name: "t/h", Linkname: "t/l/secret", Typeflag: tar.TypeLink}},
			exitOwn, "l -> ../..", "escapes",
		},
		"a device":           {nil, []tar.Header{device, {Name: "t/f"}}, 0, "f = from the VM", "left out dev: it is a device"},
		"an absolute link":   {nil, []tar.Header{{Name: "t/l", Linkname: "/etc/passwd"}}, 0, "", "left out l: it is a link to /etc/passwd"},
		"a link up":          {nil, []tar.Header{{Name: "t/d/"}, {Name: "t/d/l", Linkname: "../../x"}}, 0, "d/", "left out d/l"},
		"a link up by links": {nil, []tar.Header{{Name: "t/s", Linkname: "."}, {Name: "t/l", Linkname: "s/../x"}, {Name: "t/s/k", Linkname: "../x"}}, 0, "s -> .", "left out s/k"},
		"a link inside":      {nil, []tar.Header{{Name: "t/d/"}, {Name: "t/d/l", Linkname: "../f"}, {Name: "t/f"}}, 0, "d/\nd/l -> ../f\nf = from the VM", ""},
		"a file as the tree": {nil, []tar.Header{{Name: "t"}}, exitOwn, "", "something else than a directory"},
		"a name of escapes":  {nil, []tar.Header{{Name: "t/\x1b[31m", Linkname: "/x"}}, 0, "", "left out : it is a link"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.files.kinds = map[string]string{"/t": api.FileDirectory}
			f.files.tree = archive(t, c.entries...)
			around := t.TempDir()
			writeFile(t, filepath.Join(around, "secret"), "mine")
			s := newSession(t, f)
			code := s.hatch(append([]string{"cp", "web:/t", filepath.Join(around, "dst")}, c.args...)...)
			if code != c.code || !strings.Contains(s.stderr.String(), c.says) {
				t.Errorf("exit code %d, stderr %s", code, &s.stderr)
			}
			if strings.Contains(s.stderr.String(), "\x1b") {
				t.Errorf("stderr has escapes: %q", &s.stderr)
			}
			if got := listing(t, filepath.Join(around, "dst")); got != c.inside {
				t.Errorf("inside there is\n%s", got)
			}
			if err := os.RemoveAll(filepath.Join(around, "dst")); err != nil {
				t.Fatal(err)
			}
			if got := listing(t, around); got != "secret = mine" {
				t.Errorf("outside there is\n%s", got)
			}
		})
	}
}

// TestOwnFilesKeepTheirModes puts ways to files that were there before into the
// place of directories that get modes in the end.
func TestOwnFilesKeepTheirModes(t *testing.T) {
	f := newFake(t)
	f.files.kinds = map[string]string{"/t": api.FileDirectory}
	f.files.tree = archive(t,
		tar.Header{Name: "t/a/", Mode: 0o777}, tar.Header{Name: "t/a", Linkname: "own"},
		tar.Header{Name: "t/b/", Mode: 0o777}, tar.Header{Name: "t/b", Linkname: "t/own/key", Typeflag: tar.TypeLink},
		tar.Header{Name: "t/c/"}, tar.Header{Name: "t/c/d/", Mode: 0o777})
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "own"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "own/key"), "mine")
	s := newSession(t, f)
	if code := s.hatch("cp", "web:/t/.", dir); code != 0 {
		t.Fatal(&s.stderr)
	}
	for name, want := range map[string]fs.FileMode{"own": 0o700 | fs.ModeDir, "own/key": 0o600, "c/d": 0o777 | fs.ModeDir} {
		t.Run(name, func(t *testing.T) {
			if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != want {
				t.Errorf("%s: %v, %v", name, st, err)
			}
		})
	}
}

func TestSetuidIsDropped(t *testing.T) {
	f := newFake(t)
	f.files.kinds = map[string]string{"/t": api.FileDirectory, "/f": api.FileRegular}
	f.files.tree = archive(t, tar.Header{Name: "t/", Mode: 0o3700}, tar.Header{Name: "t/f", Mode: 0o6755})
	dir := t.TempDir()
	s := newSession(t, f)
	for _, source := range []string{"web:/t", "web:/f"} {
		if code := s.hatch("cp", source, dir); code != 0 {
			t.Fatal(&s.stderr)
		}
	}
	for name, want := range map[string]fs.FileMode{"f": 0o755, "t/f": 0o755, "t": 0o700 | fs.ModeDir | fs.ModeSticky} {
		t.Run(name, func(t *testing.T) {
			if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != want {
				t.Errorf("%s: %v, %v", name, st.Mode(), err)
			}
		})
	}
	if st, err := os.Stat(filepath.Join(dir, "t")); err != nil || !st.ModTime().Equal(testNow) {
		t.Errorf("the directory is of %v, %v", st.ModTime(), err)
	}
	f.files.tree = archive(t, tar.Header{Name: "t/f", Mode: 0o6755, Uid: os.Getuid(), Gid: os.Getgid()})
	if code := s.hatch("cp", "-a", "web:/t", filepath.Join(dir, "kept")); code != 0 {
		t.Fatal(&s.stderr)
	}
	if st, err := os.Stat(filepath.Join(dir, "kept/f")); err != nil || st.Mode() != 0o755|fs.ModeSetuid|fs.ModeSetgid {
		t.Errorf("with -a: %v, %v", st.Mode(), err)
	}
}

// TestBrokenDownloads leaves what was there, and says that it failed.
func TestBrokenDownloads(t *testing.T) {
	f := newFake(t)
	f.files.kinds = map[string]string{"/t": api.FileDirectory, "/f": api.FileRegular}
	f.files.content, f.files.cut = "half", true
	f.files.tree = archive(t, tar.Header{Name: "t/f"})
	f.files.tree = f.files.tree[:515] // in the middle of the file
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "f"), "old")
	s := newSession(t, f)
	for _, args := range [][]string{{"cp", "web:/f", filepath.Join(dir, "f")}, {"cp", "web:/t/.", dir}, {"cp", "web:/f", "-"}, {"cp", "web:/t", "-"}} {
		t.Run(strings.Join(args[:2], " "), func(t *testing.T) {
			if code := s.hatch(args...); code != exitOwn || s.stderr.Len() == 0 {
				t.Errorf("%v: exit code %d, %s", args, code, &s.stderr)
			}
			if got := listing(t, dir); got != "f = old" {
				t.Errorf("%v: there is\n%s", args, got)
			}
		})
	}
}

func TestLinksAreCopiedAsAsked(t *testing.T) {
	f := newFake(t)
	f.files.kinds = map[string]string{"/l": api.FileSymlink, "/etc/x": api.FileRegular, "/near": api.FileSymlink, "/loop": api.FileSymlink}
	f.files.targets = map[string]string{"/l": "etc/../x", "/near": "etc/x", "/loop": "loop"}
	f.files.kinds["/etc/../x"] = api.FileRegular
	f.files.content = "x"
	dir := t.TempDir()
	s := newSession(t, f)
	if code := s.hatch("cp", "web:/l", dir); code != exitOwn || !strings.Contains(s.stderr.String(), "hint: copy its target with -L") {
		t.Errorf("a link out: exit code %d, %s", code, &s.stderr)
	}
	for _, args := range [][]string{{"cp", "-L", "web:/l", dir}, {"cp", "web:near", dir}} {
		t.Run(args[len(args)-2], func(t *testing.T) {
			if code := s.hatch(args...); code != 0 {
				t.Errorf("%v: %s", args, &s.stderr)
			}
		})
	}
	if got := listing(t, dir); got != "l = x\nnear -> etc/x" {
		t.Errorf("there is\n%s", got)
	}
	if code := s.hatch("cp", "-L", "web:/loop", dir); code != exitOwn || !strings.Contains(s.stderr.String(), "too many links") {
		t.Errorf("a loop: exit code %d, %s", code, &s.stderr)
	}
}

func TestUploads(t *testing.T) {
	f := newFake(t)
	f.files.kinds = map[string]string{"/d": api.FileDirectory, "/old": api.FileRegular}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "src/a b"), "one")
	if err := os.Symlink("a b", filepath.Join(dir, "src/l")); err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(dir, "src")
	const base = "/vms/vm_web000000001/files"
	for _, c := range []struct {
		from, to, request string
		names             string // of a tree
	}{
		{src + "/a b", "web:/d", base + "?mode=0600&path=%2Fd%2Fa+b", ""},
		{src + "/a b", "web:/d/", base + "?mode=0600&path=%2Fd%2Fa+b", ""},
		{src + "/a b", "web:/new", base + "?mode=0600&path=%2Fnew", ""},
		{src + "/a b", "web:old", base + "?mode=0600&path=%2Fold", ""},
		{src, "web:/d", base + "/tar?path=%2Fd", "src/ src/a b src/l"},
		{src + "/.", "web:/d", base + "/tar?path=%2Fd", "a b l"},
		{src, "web:/new", base + "/tar?path=%2F", "new/ new/a b new/l"},
		{src + "/.", "web:/new/x/", base + "/tar?path=%2Fnew%2F", "x/ x/a b x/l"},
		{src + "/l", "web:/d/m", base + "/tar?path=%2Fd%2F", "m"},
		{"-", "web:/new", base + "?path=%2Fnew", ""},
		{"-", "web:/d", base + "/tar?path=%2Fd", "x"},
	} {
		clear(f.files.uploaded)
		s := newSession(t, f)
		s.stdin = bytes.NewReader(archive(t, tar.Header{Name: "x"}))
		if code := s.hatch("cp", c.from, c.to); code != 0 {
			t.Errorf("%s to %s: %s", c.from, c.to, &s.stderr)
			continue
		}
		body, sent := f.files.uploaded[c.request]
		if !sent {
			t.Errorf("%s to %s: sent %v", c.from, c.to, f.files.uploaded)
		}
		if c.names != "" {
			if got := namesIn(t, body); got != c.names {
				t.Errorf("%s to %s: packed %q", c.from, c.to, got)
			}
		}
	}
}

func namesIn(t *testing.T, text string) string {
	t.Helper()
	var names []string
	in := tar.NewReader(strings.NewReader(text))
	for {
		h, err := in.Next()
		if err == io.EOF {
			return strings.Join(names, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Uname != "" {
			t.Errorf("%s is owned by %d %q", h.Name, h.Uid, h.Uname)
		}
		names = append(names, h.Name)
	}
}

func TestCopyRefusals(t *testing.T) {
	f := newFake(t)
	f.files.kinds = map[string]string{"/f": api.FileRegular, "/d": api.FileDirectory, "/s": api.FileOther}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "f"), "mine")
	for _, c := range []struct{ from, to, says string }{
		{"web:/f", "db:/f", "hint: hatch cp web:/f - | hatch cp - db:/f"},
		{"./a:b", dir, "one side must be in a VM"},
		{"web:/none", dir, "there is no such file"},
		{"none:/f", dir, `there is no VM "none"`},
		{"web:/f", dir + "/none/", "is not a directory"},
		{"web:/f", dir + "/none/f", "no such file or directory"},
		{"web:/d", dir + "/f", "which is not one"},
		{"web:/s", dir, "device, socket or pipe"},
		{"web:/", dir, "there is no such file"},
		{dir + "/none", "web:/d", "no such file or directory"},
		{dir, "web:/f", "which is not one"},
		{dir + "/f", "web:/none/", "is not a directory in the VM"},
		{dir + "/f", "web:/f/", "is not a directory in the VM"},
	} {
		t.Run(c.from+" to "+c.to, func(t *testing.T) {
			s := newSession(t, f)
			if code := s.hatch("cp", c.from, c.to); code == 0 || !strings.Contains(s.stderr.String(), c.says) {
				t.Errorf("%s to %s: exit code %d, %s", c.from, c.to, code, &s.stderr)
			}
		})
	}
	if got := listing(t, dir); got != "f = mine" {
		t.Errorf("left is\n%s", got)
	}
	if len(f.files.uploaded) > 0 {
		t.Errorf("sent %v", f.files.uploaded)
	}
}

func TestPlaces(t *testing.T) {
	for arg, want := range map[string]place{
		"web:/a": {"web", "/a"}, "web:a:b": {"web", "/a:b"}, "web:": {"web", "/"}, "a": {path: "a"}, "-": {path: "-"},
		"./web:/a": {path: "./web:/a"}, "/web:/a": {path: "/web:/a"}, ":a": {path: ":a"}, "a/b:c": {path: "a/b:c"},
	} {
		t.Run(arg, func(t *testing.T) {
			if got := placeOf(arg); got != want {
				t.Errorf("%s is %+v", arg, got)
			}
		})
	}
}

func TestCopyShowsProgressOnATerminalOnly(t *testing.T) {
	if got := copyProgress("/f", 1<<20, 2<<20); !strings.HasPrefix(got, "copying /f: 1") || !strings.Contains(got, " of 2") {
		t.Errorf("shows %q", got)
	}
	f := newFake(t)
	f.files.kinds = map[string]string{"/f": api.FileRegular}
	s := newSession(t, f)
	if code := s.hatch("cp", "web:/f", t.TempDir()); code != 0 || s.stderr.Len() > 0 || s.stdout.Len() > 0 {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, &s.stdout, &s.stderr)
	}
}
