package httpapi_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake/guest"
	"github.com/hatchvm/hatch/internal/file"
)

// fakeGuest is the guest of goodAcc's VM. Its files are below dir.
type fakeGuest struct {
	uses guest.Uses
	file.Guest
	dir string
}

func openGuest(t testing.TB) *fakeGuest {
	t.Helper()
	dir := t.TempDir()
	files, err := guest.OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	g := &fakeGuest{Guest: files, dir: dir}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	return g
}

// Open implements file.Guests.
func (g *fakeGuest) Open(_ context.Context, scope access.Scope, vmID string, _ file.Mode) (file.Guest, func(), error) {
	if scope != access.Owner(goodAcc) || vmID != knownVM {
		return nil, nil, errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", vmID)
	}
	return g, g.uses.Begin(), nil
}

func (g *fakeGuest) put(t *testing.T, path, content string) {
	t.Helper()
	name := filepath.Join(g.dir, path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (g *fakeGuest) content(path string) string {
	text, err := os.ReadFile(filepath.Join(g.dir, path))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// files returns the target of a route about a path in the known VM.
func files(verb, path, more string) string {
	return "/vms/" + knownVM + "/files" + verb + "?path=" + url.QueryEscape(path) + more
}

// emptyTar is an archive of nothing.
var emptyTar = strings.Repeat("\x00", 1024)

func TestWriteAndReadFile(t *testing.T) {
	s := newServer(t)
	content := strings.Repeat("\x00\xff\r\n", 1<<20) // 4 MiB: more than other bodies may have
	reply := s.call(t, "PUT", files("", "/tmp/a/b", "&mode=0640&parents=true"), content)
	wantStatus(t, reply, 200)
	if f := decode[api.File](t, reply); f.Path != "/tmp/a/b" || f.Name != "b" || f.Size != 4<<20 || f.Mode != "0640" || f.Kind != api.FileRegular || f.PathEncoded != "" {
		t.Errorf("wrote %+v", f)
	}
	reply = s.call(t, "GET", files("", "/tmp/a/b", ""), "")
	wantStatus(t, reply, 200)
	h := reply.Header
	if string(reply.body) != content || h.Get("Content-Length") != "4194304" || h.Get("Content-Type") != "application/octet-stream" ||
		h.Get("X-Hatch-File-Mode") != "0640" || h.Get("X-Hatch-File-Uid") != fmt.Sprint(os.Getuid()) {
		t.Errorf("read %d bytes, headers %v", len(reply.body), h)
	}
	if _, err := http.ParseTime(h.Get("Last-Modified")); err != nil {
		t.Error(err)
	}
	wantStatus(t, s.call(t, "PUT", files("", "/tmp/a/b", ""), ""), 200)
	if st, err := os.Stat(filepath.Join(s.guest.dir, "tmp/a/b")); err != nil || st.Size() != 0 || st.Mode() != 0o640 {
		t.Errorf("replaced by nothing it is %v, %v", st, err)
	}
	reply = s.call(t, "GET", files("", "/tmp/a/b", ""), "")
	if wantStatus(t, reply, 200); reply.ContentLength != 0 {
		t.Errorf("an empty file has %d bytes", reply.ContentLength)
	}
}

func TestRanges(t *testing.T) {
	s := newServer(t)
	s.guest.put(t, "f", "0123456789")
	tag := s.call(t, "GET", files("", "/f", ""), "").Header.Get("ETag")
	for _, c := range []struct {
		header, value string
		status        int
		body, span    string
	}{
		{"Range", "bytes=0-3", 206, "0123", "bytes 0-3/10"},
		{"Range", "bytes=4-", 206, "456789", "bytes 4-9/10"},
		{"Range", "bytes=-3", 206, "789", "bytes 7-9/10"},
		{"Range", "bytes=-99", 206, "0123456789", "bytes 0-9/10"},
		{"Range", "bytes=8-99", 206, "89", "bytes 8-9/10"},
		{"Range", "Bytes=9-9", 206, "9", "bytes 9-9/10"},
		{"Range", "bytes=10-", 416, "", "bytes */10"},
		{"Range", "bytes=0-1,4-5", 200, "0123456789", ""},
		{"Range", "lines=0-1", 200, "0123456789", ""},
		{"Range", "bytes=5-3", 200, "0123456789", ""},
		{"Range", "bytes=-0", 200, "0123456789", ""},
		{"Range", "bytes=99999999999999999999-", 200, "0123456789", ""},
		{"If-None-Match", tag, 304, "", ""},
		{"If-None-Match", `"old"`, 200, "0123456789", ""},
	} {
		r := s.request(t, "GET", files("", "/f", ""), "")
		r.Header.Set(c.header, c.value)
		reply := s.send(t, r)
		if reply.StatusCode != c.status || reply.Header.Get("Content-Range") != c.span || (c.status != 416 && string(reply.body) != c.body) {
			t.Errorf("%s: %s: status %d, %q, %q", c.header, c.value, reply.StatusCode, reply.Header.Get("Content-Range"), reply.body)
		}
	}
	for ifRange, status := range map[string]int{tag: 206, `"old"`: 200} {
		r := s.request(t, "GET", files("", "/f", ""), "")
		r.Header.Set("Range", "bytes=0-0")
		r.Header.Set("If-Range", ifRange)
		if reply := s.send(t, r); reply.StatusCode != status {
			t.Errorf("If-Range %s: status %d", ifRange, reply.StatusCode)
		}
	}
	reply := s.call(t, "HEAD", files("", "/f", ""), "")
	if reply.StatusCode != 200 || len(reply.body) != 0 || reply.Header.Get("Content-Length") != "10" || reply.Header.Get("ETag") != tag {
		t.Errorf("HEAD: status %d, headers %v", reply.StatusCode, reply.Header)
	}
}

// TestFileNames uses names that JSON cannot have, and those that look like
// something else.
func TestFileNames(t *testing.T) {
	s := newServer(t)
	for _, name := range []string{"a b", "a+b", "ü", "\xff\xfe", "a%2Fb", "q?x=1&y=2#z", "line\nfeed", "\x7f", "\x1b[31m"} {
		path := "/tmp/" + name
		wantStatus(t, s.call(t, "PUT", files("", path, ""), "x"), 200)
		if s.guest.content(path) != "x" {
			t.Errorf("%q was not written", name)
		}
		f := decode[api.File](t, s.call(t, "GET", files("/stat", path, ""), ""))
		encoded, err := url.PathUnescape(f.PathEncoded)
		if f.Path != path && (encoded != path || err != nil || f.NameEncoded == "") {
			t.Errorf("%q is shown as %+v", name, f)
		}
		body := fmt.Sprintf(`{"from_encoded":%q,"to_encoded":%q}`, url.PathEscape(path), url.PathEscape(path+"2"))
		wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/files/rename", body), 200)
		wantStatus(t, s.call(t, "DELETE", files("", path+"2", ""), ""), 200)
	}
	wantStatus(t, s.call(t, "POST", "/vms/"+knownVM+"/files/mkdir", `{"path_encoded":"/tmp/%FF"}`), 200)
	list := decode[[]api.File](t, s.call(t, "GET", files("/list", "/tmp", ""), ""))
	if len(list) != 1 || list[0].Name != "\uFFFD" || list[0].NameEncoded != "%FF" || list[0].PathEncoded != "/tmp/%FF" || list[0].Kind != api.FileDirectory {
		t.Errorf("left: %+v", list)
	}
}

func TestFileRefusals(t *testing.T) {
	s := newServer(t)
	s.guest.put(t, "tmp/dir/f", "x")
	for _, c := range []struct {
		method, target, body string
		status               int
		code                 string
	}{
		{"GET", files("", "", ""), "", 400, "invalid_path"},
		{"GET", "/vms/" + knownVM + "/files", "", 400, "invalid_path"},
		{"GET", files("", "tmp", ""), "", 400, "invalid_path"},
		{"GET", files("", "/a\x00b", ""), "", 400, "invalid_path"},
		{"GET", "/vms/" + knownVM + "/files?path=%zz", "", 400, "invalid_url"},
		{"GET", files("", "/tmp", "&x=%ff"), "", 400, "invalid_url"},
		{"GET", "/vms?path=%ff", "", 400, "invalid_url"},
		{"GET", "/vms/" + knownVM + "/logs?path=%ff", "", 400, "invalid_url"},
		{"GET", files("", "/tmp", "&depth=2"), "", 400, "invalid_depth"},
		{"GET", files("", "/tmp/none", ""), "", 404, "file_not_found"},
		{"GET", files("", "/tmp/dir", ""), "", 409, "is_a_directory"},
		{"GET", files("/list", "/tmp/dir/f", ""), "", 409, "not_a_directory"},
		{"GET", files("/tar", "/tmp/none", ""), "", 404, "file_not_found"},
		{"PUT", files("", "/tmp/dir", ""), "x", 409, "is_a_directory"},
		{"PUT", files("", "/tmp/f", "&mode=999"), "x", 400, "invalid_mode"},
		{"PUT", files("", "/tmp/f", "&mode=17777"), "x", 400, "invalid_mode"},
		{"PUT", files("", "/tmp/f", "&owner=a:"), "x", 400, "invalid_owner"},
		{"PUT", files("", "/tmp/no/f", ""), "x", 404, "file_not_found"},
		{"DELETE", files("", "/tmp/dir", ""), "", 409, "directory_not_empty"},
		{"DELETE", files("", "/", "&recursive=true"), "", 400, "invalid_path"},
		{"POST", "/vms/" + knownVM + "/files/mkdir", `{}`, 400, "invalid_path"},
		{"POST", "/vms/" + knownVM + "/files/mkdir", `{"path":"/a","path_encoded":"/a"}`, 400, "invalid_path"},
		{"POST", "/vms/" + knownVM + "/files/mkdir", `{"path_encoded":"/%f"}`, 400, "invalid_path_encoded"},
		{"POST", "/vms/" + knownVM + "/files/mkdir", `{"path":"/a","mode":"8"}`, 400, "invalid_mode"},
		{"POST", "/vms/" + knownVM + "/files/mkdir", `{"path":"/tmp/dir"}`, 409, "file_exists"},
		{"POST", "/vms/" + knownVM + "/files/rename", `{"from":"/tmp/dir"}`, 400, "invalid_to"},
		{"POST", "/vms/" + knownVM + "/files", `{}`, 405, "method_not_allowed"},
	} {
		reply := s.call(t, c.method, c.target, c.body)
		if p := reply.problem(t); reply.StatusCode != c.status || p.Code != c.code {
			t.Errorf("%s %s %s: status %d, %s", c.method, c.target, c.body, reply.StatusCode, reply.body)
		}
	}
	if got := s.guest.content("tmp/dir/f"); got != "x" {
		t.Errorf("the file that was there is %s", got)
	}
}

func TestTrees(t *testing.T) {
	s := newServer(t)
	s.guest.put(t, "tmp/src/a b/\xff", "one")
	s.guest.put(t, "tmp/src/two", "two")
	if err := os.Symlink("two", filepath.Join(s.guest.dir, "tmp/src/link")); err != nil {
		t.Fatal(err)
	}
	reply := s.call(t, "GET", files("/tar", "/tmp/src", ""), "")
	wantStatus(t, reply, 200)
	if names := namesIn(t, reply.body); !slices.Equal(names, []string{"src", "src/a b", "src/a b/\xff", "src/link", "src/two"}) {
		t.Errorf("packed %q", names)
	}
	reply = s.call(t, "PUT", files("/tar", "/tmp/dst", ""), string(reply.body))
	wantStatus(t, reply, 200)
	if f := decode[api.File](t, reply); f.Path != "/tmp/dst" || f.Kind != api.FileDirectory {
		t.Errorf("unpacked into %+v", f)
	}
	if s.guest.content("tmp/dst/src/a b/\xff") != "one" || s.guest.content("tmp/dst/src/link") != "two" {
		t.Error("the tree is not whole")
	}
	if reply := s.call(t, "HEAD", files("/tar", "/tmp/src", ""), ""); reply.StatusCode != 200 || reply.Header.Get("Content-Type") != "application/x-tar" {
		t.Errorf("HEAD: %d, %v", reply.StatusCode, reply.Header)
	}
}

func namesIn(t *testing.T, archive []byte) []string {
	t.Helper()
	var names []string
	in := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
	}
}

func TestLargeDirectory(t *testing.T) {
	s := newServer(t)
	const many = 3000
	for i := range many {
		s.guest.put(t, fmt.Sprintf("many/%04d", i), "")
	}
	list := decode[[]api.File](t, s.call(t, "GET", files("/list", "/many", ""), ""))
	if len(list) != many || list[0].Name != "0000" || list[many-1].Path != "/many/2999" {
		t.Errorf("%d entries", len(list))
	}
	if list := decode[[]api.File](t, s.call(t, "GET", files("/list", "/tmp", ""), "")); len(list) != 0 {
		t.Errorf("an empty directory has %v", list)
	}
}

// breaking is a guest whose content breaks off.
type breaking struct {
	file.Guest
	size int64
}

var errBroken = errors.New("the port has closed")

func (g breaking) ReadFile(_ context.Context, spec file.ReadSpec) (file.Info, io.ReadCloser, error) {
	return file.Info{Path: spec.Path, Size: g.size, ModifiedAt: began}, g.content(), nil
}

func (g breaking) ReadTree(context.Context, string) (io.ReadCloser, error) { return g.content(), nil }

func (g breaking) content() io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		_, _ = io.WriteString(w, strings.Repeat("x", 100_000))
		w.CloseWithError(errBroken)
	}()
	return r
}

// TestBrokenDownload takes care that no part looks like the whole.
func TestBrokenDownload(t *testing.T) {
	s := newServer(t)
	for _, c := range []struct {
		verb string
		size int64
	}{{"", 200_000}, {"", 50_000}, {"", -1}, {"/tar", 0}} {
		s.guest.Guest = breaking{s.guest.Guest, c.size}
		resp, err := http.DefaultClient.Do(s.request(t, "GET", files(c.verb, "/f", ""), ""))
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if whole := c.size == 50_000; (err == nil) != whole {
			t.Errorf("%s of %d bytes: read %d, %v", c.verb, c.size, len(content), err)
		}
	}
}

// TestUnknownSize reads a file that is generated while it is read.
func TestUnknownSize(t *testing.T) {
	s := newServer(t)
	s.guest.put(t, "meminfo", "MemTotal")
	s.guest.Guest = sizeless{s.guest.Guest}
	r := s.request(t, "GET", files("", "/meminfo", ""), "")
	r.Header.Set("Range", "bytes=0-2")
	reply := s.send(t, r)
	if wantStatus(t, reply, 200); string(reply.body) != "MemTotal" || reply.Header.Get("ETag") != "" {
		t.Errorf("read %q, headers %v", reply.body, reply.Header)
	}
}

type sizeless struct{ file.Guest }

func (g sizeless) ReadFile(ctx context.Context, spec file.ReadSpec) (file.Info, io.ReadCloser, error) {
	info, content, err := g.Guest.ReadFile(ctx, spec)
	info.Size = -1
	return info, content, err
}

// TestBrokenUpload leaves the old file.
func TestBrokenUpload(t *testing.T) {
	s := newServer(t)
	s.guest.put(t, "f", "old")
	for name, length := range map[string]int64{"with a length": 1 << 20, "without a length": -1} {
		body, w := io.Pipe()
		r := s.request(t, "PUT", files("", "/f", ""), "")
		r.Body, r.ContentLength = body, length
		go func() {
			_, _ = io.WriteString(w, strings.Repeat("new", 10_000))
			w.CloseWithError(errBroken)
		}()
		if resp, err := http.DefaultClient.Do(r); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s: status %d", name, resp.StatusCode)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	s.Close() // waits for the handlers
	if got := s.guest.content("f"); got != "old" {
		t.Errorf("the old file is %.20q", got)
	}
	if left, err := os.ReadDir(s.guest.dir); err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestWatchFiles(t *testing.T) {
	s := newServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	resp, err := http.DefaultClient.Do(s.request(t, "GET", files("/watch", "/tmp", "&recursive=true"), "").WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || kind != "text/event-stream" {
		t.Fatalf("status %d, %s", resp.StatusCode, kind)
	}
	s.guest.put(t, "tmp/\xff\n", "x") // seen, for the answer has begun
	seen := readEvents(t, resp.Body, 1)
	if !strings.Contains(seen[0], `"kind":"create"`) || !strings.Contains(seen[0], `"path_encoded":"/tmp/%FF%0A"`) {
		t.Errorf("saw %q", seen)
	}
	if err := os.RemoveAll(filepath.Join(s.guest.dir, "tmp")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a broken watch looks like one that has ended")
	}
}
