package contexts

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestContextsAreKept(t *testing.T) {
	path := Path(t.TempDir())
	all, err := Load(path)
	if err != nil || len(all.Contexts) != 0 {
		t.Fatalf("without a file: %+v, %v", all, err)
	}
	all.Put(Context{Name: "b", URL: "https://b", Key: "kb", CAFile: "/ca"})
	all.Put(Context{Name: "a", URL: "https://a", Key: "old"})
	all.Put(Context{Name: "a", URL: "https://a", Key: "ka"})
	if err := all.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil || got.Current != "a" || len(got.Contexts) != 2 || got.Contexts[0].Key != "ka" || got.Contexts[1].CAFile != "/ca" {
		t.Errorf("got %+v, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := got.Remove("a"); err != nil || got.Current != "" {
		t.Errorf("current is %q, %v", got.Current, err)
	}
	if err := got.Remove("a"); err == nil {
		t.Error("it is removed twice")
	}
}

func TestFilesThatAreNotUsed(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		mode fs.FileMode
	}{
		"others can read it": {`{"contexts":[]}`, 0o640},
		"damaged":            {`{"contexts":[{"key":"secret`, 0o600},
		"too large":          {strings.Repeat(" ", maxFile+1), 0o600},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "contexts.json")
			if err := os.WriteFile(path, []byte(c.text), c.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(path); err == nil || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestNamesOfContexts(t *testing.T) {
	for name, good := range map[string]bool{"prod": true, "a.b-c_1": true, "": false, "local": false, "-x": false, "a/b": false, strings.Repeat("a", 64): false} {
		if err := CheckName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}
