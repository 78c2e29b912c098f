package envd_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const filesystem = "/filesystem.Filesystem/"

// newTree returns a world with files, all with one time.
func newTree(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	home := filepath.Join(w.root, "home/user")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(home, "d/e"), 0o755))
	w.put(t, "home/user/a.txt", "12345")
	w.put(t, "home/user/d/e/deep", "")
	must(os.Symlink("a.txt", filepath.Join(home, "link")))
	must(os.Symlink("link", filepath.Join(home, "link2")))
	must(os.Symlink("nowhere", filepath.Join(home, "broken")))
	must(os.Symlink("d", filepath.Join(home, "dirlink")))
	at := time.Date(2030, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	for _, name := range []string{"a.txt", "d", "d/e", "d/e/deep"} {
		must(os.Chtimes(filepath.Join(home, name), at, at))
	}
	return w
}

// entryText returns the entry of a file that root owns.
func entryText(name, kind, at, size, mode, permissions, target string) string {
	text := fmt.Sprintf(`{"name":%q,"type":"FILE_TYPE_%s","path":%q`, name, kind, at)
	if size != "" {
		text += fmt.Sprintf(`,"size":%q`, size)
	}
	text += fmt.Sprintf(`,"mode":%s,"permissions":%q,"owner":"root","group":"root","modifiedTime":"2030-01-02T03:04:05.6Z"`, mode, permissions)
	if target != "" {
		text += fmt.Sprintf(`,"symlinkTarget":%q`, target)
	}
	return text + "}"
}

func TestStat(t *testing.T) {
	w := newTree(t)
	for path, want := range map[string]string{
		"a.txt":             entryText("a.txt", "FILE", "/home/user/a.txt", "5", "420", "-rw-r--r--", ""),
		"/home/user/a.txt":  entryText("a.txt", "FILE", "/home/user/a.txt", "5", "420", "-rw-r--r--", ""),
		"~/d/../a.txt":      entryText("a.txt", "FILE", "/home/user/a.txt", "5", "420", "-rw-r--r--", ""),
		"link":              entryText("link", "FILE", "/home/user/link", "5", "420", "-rw-r--r--", "/home/user/a.txt"),
		"link2":             entryText("link2", "FILE", "/home/user/link2", "5", "420", "-rw-r--r--", "/home/user/a.txt"),
		"/home/user/d/e/":   entryText("e", "DIRECTORY", "/home/user/d/e", "SIZE", "493", "drwxr-xr-x", ""),
		"d/e/deep":          entryText("deep", "FILE", "/home/user/d/e/deep", "", "420", "-rw-r--r--", ""),
		"dirlink/e":         entryText("e", "DIRECTORY", "/home/user/dirlink/e", "SIZE", "493", "drwxr-xr-x", ""),
		"/home/user/d/e/..": entryText("d", "DIRECTORY", "/home/user/d", "SIZE", "493", "drwxr-xr-x", ""),
	} {
		r := w.call(t, filesystem+"Stat", fmt.Sprintf(`{"path":%q}`, path))
		var got struct{ Entry struct{ Size string } }
		if err := json.Unmarshal([]byte(r.body), &got); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		r.want(t, 200, `{"entry":`+strings.ReplaceAll(want, "SIZE", got.Entry.Size)+`}`) // of a directory it is the file system's
	}
	if r := w.call(t, filesystem+"Stat", `{"path":"broken"}`); !strings.HasPrefix(r.body, `{"entry":{"name":"broken","type":"FILE_TYPE_SYMLINK","path":"/home/user/broken"`) ||
		!strings.Contains(r.body, `"symlinkTarget":"/home/user/nowhere"`) {
		t.Errorf("a broken link is %s", r.body)
	}
	w.call(t, filesystem+"Stat", `{"path":"a.txt"}`, "User-Agent", "connect-python").
		want(t, 200, `{"entry":{"name":"a.txt","type":"FILE_TYPE_FILE","path":"/home/user/a.txt"}}`)
	w.call(t, filesystem+"Stat", `{"path":"."}`, "Authorization", "Basic "+b64("root:x"), "User-Agent", "connect-python").
		want(t, 200, `{"entry":{"name":"root","type":"FILE_TYPE_DIRECTORY","path":"/root"}}`)
	w.call(t, filesystem+"Stat", `{"path":"missing"}`).wantError(t, 404, "not_found", "/home/user/missing")
	w.call(t, filesystem+"Stat", `{"path":"/x\u0000"}`).wantError(t, 400, "invalid_argument", "NUL")
	w.call(t, filesystem+"Stat", `{"path":"/etc"}`, "Authorization", "Basic "+b64("no-one:")).wantError(t, 401, "unauthenticated", "invalid username: 'no-one'")
	w.sandbox.DefaultUser = "odd" // whose home is no absolute path
	w.call(t, filesystem+"Stat", `{"path":"."}`).wantError(t, 401, "unauthenticated", "invalid username: 'odd'")
	w.sandbox.DefaultUser, w.sandbox.Dir = "", "/tmp"
	w.call(t, filesystem+"Stat", `{"path":""}`, "User-Agent", "connect-python").want(t, 200, `{"entry":{"name":"tmp","type":"FILE_TYPE_DIRECTORY","path":"/tmp"}}`)
}

// paths lists a directory.
func (w *world) paths(t *testing.T, request string) []string {
	t.Helper()
	r := w.call(t, filesystem+"ListDir", request)
	var got struct {
		Entries []struct{ Path, Name string }
	}
	if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.StatusCode != 200 || got.Entries == nil {
		t.Fatalf("%s: status %d, %s", request, r.StatusCode, r.body)
	}
	paths := []string{}
	for _, e := range got.Entries {
		if filepath.Base(e.Path) != e.Name {
			t.Errorf("%s has the name %s", e.Path, e.Name)
		}
		paths = append(paths, strings.TrimPrefix(e.Path, "/home/user/"))
	}
	return paths
}

func TestListDir(t *testing.T) {
	w := newTree(t)
	for request, want := range map[string][]string{
		`{"path":"."}`:                          {"a.txt", "broken", "d", "dirlink", "link", "link2"},
		`{"path":"/home/user","depth":0}`:       {"a.txt", "broken", "d", "dirlink", "link", "link2"},
		`{"path":"~","depth":"2"}`:              {"a.txt", "broken", "d", "d/e", "dirlink", "link", "link2"},
		`{"path":"~","depth":9}`:                {"a.txt", "broken", "d", "d/e", "d/e/deep", "dirlink", "link", "link2"},
		`{"path":"/home/user/dirlink"}`:         {"dirlink/e"},
		`{"path":"d/e/../e"}`:                   {"d/e/deep"},
		`{"path":"/tmp"}`:                       {},
		`{"path":"/","depth":1,"unknown":true}`: {"/etc", "/home", "/root", "/tmp"},
	} {
		if got := w.paths(t, request); !slices.Equal(got, want) {
			t.Errorf("%s: %q", request, got)
		}
	}
	w.call(t, filesystem+"ListDir", `{"path":"/tmp"}`).want(t, 200, `{"entries":[]}`)
	w.call(t, filesystem+"ListDir", `{"path":"missing"}`).wantError(t, 404, "not_found", "")
	w.call(t, filesystem+"ListDir", `{"path":"a.txt"}`).wantError(t, 400, "invalid_argument", "")
	w.call(t, filesystem+"ListDir", `{"path":"a.txt","depth":-1}`).wantError(t, 400, "invalid_argument", "")
}

func TestMakeMoveRemove(t *testing.T) {
	w := newTree(t)
	old := []string{"User-Agent", "connect-python"}
	w.call(t, filesystem+"MakeDir", `{"path":"x/y/z"}`, old...).want(t, 200, `{"entry":{"name":"z","type":"FILE_TYPE_DIRECTORY","path":"/home/user/x/y/z"}}`)
	for _, path := range []string{"x/y/z", "dirlink", "/", "."} {
		w.call(t, filesystem+"MakeDir", `{"path":"`+path+`"}`).wantError(t, 409, "already_exists", "")
	}
	for _, path := range []string{"a.txt", "link", "broken", "a.txt/x"} {
		w.call(t, filesystem+"MakeDir", `{"path":"`+path+`"}`).wantError(t, 400, "invalid_argument", "")
	}
	w.call(t, filesystem+"Move", `{"source":"a.txt","destination":"new/dir/b.txt"}`, old...).
		want(t, 200, `{"entry":{"name":"b.txt","type":"FILE_TYPE_FILE","path":"/home/user/new/dir/b.txt"}}`)
	w.put(t, "home/user/c.txt", "c")
	w.call(t, filesystem+"Move", `{"source":"c.txt","destination":"new/dir/b.txt"}`, old...).
		want(t, 200, `{"entry":{"name":"b.txt","type":"FILE_TYPE_FILE","path":"/home/user/new/dir/b.txt"}}`)
	if text, err := os.ReadFile(filepath.Join(w.root, "home/user/new/dir/b.txt")); string(text) != "c" {
		t.Errorf("moved: %q, %v", text, err)
	}
	w.call(t, filesystem+"Move", `{"source":"c.txt","destination":"q/d.txt"}`).wantError(t, 404, "not_found", "c.txt")
	w.call(t, filesystem+"Move", `{"source":"/","destination":"q"}`).wantError(t, 400, "invalid_argument", "root")
	w.call(t, filesystem+"Remove", `{"path":"new"}`).want(t, 200, "{}")
	w.call(t, filesystem+"Remove", `{"path":"new"}`).want(t, 200, "{}")
	w.call(t, filesystem+"Remove", `{"path":"/"}`).wantError(t, 400, "invalid_argument", "root")
	if _, err := os.Stat(filepath.Join(w.root, "home/user/new")); !os.IsNotExist(err) {
		t.Errorf("after the removal: %v", err)
	}
}

// change is an event of a watch.
type change struct {
	Name, Type string
	Entry      *struct{ Path string }
}

func (c change) String() string {
	text := strings.TrimPrefix(c.Type, "EVENT_TYPE_") + " " + c.Name
	if c.Entry != nil {
		text += " " + c.Entry.Path
	}
	return text
}

func TestWatchDir(t *testing.T) {
	w := newTree(t)
	e := w.stream(t, filesystem+"WatchDir", `{"path":"d","recursive":true,"includeEntry":true}`)
	e.want(`{"start":{}}`)
	next := func(want string) {
		t.Helper()
		text, _ := e.next()
		var got struct{ Filesystem change }
		if err := json.Unmarshal([]byte(text), &got); err != nil || got.Filesystem.String() != want {
			t.Errorf("got %s, want %s", text, want)
		}
	}
	w.put(t, "home/user/d/e/new", "x")
	next("CREATE e/new /home/user/d/e/new")
	if err := os.Remove(filepath.Join(w.root, "home/user/d/e/deep")); err != nil {
		t.Fatal(err)
	}
	next("REMOVE e/deep")
	for request, want := range map[string]string{`{"path":"a.txt"}`: "invalid_argument", `{"path":"missing"}`: "not_found"} {
		if got, end := w.stream(t, filesystem+"WatchDir", request).next(); !end || !strings.HasPrefix(got, `{"error":{"code":"`+want) {
			t.Errorf("%s: %s", request, got)
		}
		if r := w.call(t, filesystem+"CreateWatcher", request); !strings.HasPrefix(r.body, `{"code":"`+want) {
			t.Errorf("%s: %s", request, r.body)
		}
	}
}

// TestWatcher fetches changes as the Python SDK does.
func TestWatcher(t *testing.T) {
	w := newTree(t)
	var made struct{ WatcherID string }
	r := w.call(t, filesystem+"CreateWatcher", `{"path":"/home/user/d"}`)
	if err := json.Unmarshal([]byte(r.body), &made); err != nil || made.WatcherID == "" {
		t.Fatalf("%s: %v", r.body, err)
	}
	id := `{"watcherId":"` + made.WatcherID + `"}`
	w.call(t, filesystem+"GetWatcherEvents", id).want(t, 200, `{"events":[]}`)
	w.put(t, "home/user/d/new", "x")
	w.put(t, "home/user/d/e/not-watched", "x")
	var got struct{ Events []change }
	for deadline := time.Now().Add(10 * time.Second); len(got.Events) == 0 && time.Now().Before(deadline); {
		r := w.call(t, filesystem+"GetWatcherEvents", strings.Replace(id, "watcherId", "watcher_id", 1))
		if err := json.Unmarshal([]byte(r.body), &got); err != nil || r.StatusCode != 200 {
			t.Fatalf("status %d: %s", r.StatusCode, r.body)
		}
	}
	if len(got.Events) == 0 || got.Events[0].String() != "CREATE new" {
		t.Errorf("the changes are %v", got.Events)
	}
	w.restart()
	w.call(t, filesystem+"GetWatcherEvents", id).want(t, 200, `{"events":[]}`)
	w.put(t, "home/user/d/later", "x")
	if r := w.call(t, filesystem+"GetWatcherEvents", id); !strings.Contains(r.body, `{"name":"later","type":"EVENT_TYPE_CREATE"}`) {
		t.Errorf("after a restart: %s", r.body)
	}
	w.restart()
	w.call(t, filesystem+"RemoveWatcher", id).want(t, 200, "{}")
	r = w.call(t, filesystem+"CreateWatcher", `{"path":"/home/user/d"}`)
	if err := json.Unmarshal([]byte(r.body), &made); err != nil {
		t.Fatal(err)
	}
	id = `{"watcherId":"` + made.WatcherID + `"}`
	w.call(t, filesystem+"RemoveWatcher", id).want(t, 200, "{}")
	w.call(t, filesystem+"RemoveWatcher", id).wantError(t, 404, "not_found", "watcher with id w")
	w.call(t, filesystem+"GetWatcherEvents", id).wantError(t, 404, "not_found", "")
	for _, odd := range []string{"", "x", "w.", "w.!", "wx.eyJwIjoieCJ9", "wx.eyJwIjoiL2EvLi4ifQ"} { // among them relative paths
		w.call(t, filesystem+"GetWatcherEvents", `{"watcherId":"`+odd+`"}`).wantError(t, 404, "not_found", "watcher with id")
	}
	for range 64 {
		w.call(t, filesystem+"CreateWatcher", `{"path":"/home/user/d"}`)
	}
	w.call(t, filesystem+"CreateWatcher", `{"path":"/home/user/d"}`).wantError(t, 429, "resource_exhausted", "watchers")
}
