package files

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

func versionOf(t *testing.T, path string) *wire.FileVersions {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return &wire.FileVersions{List: []wire.FileVersion{{}, {ModifiedNanos: st.ModTime().UnixNano(), Size: st.Size()}}}
}

// then runs a function at the end of a content.
type then func()

func (do then) Read([]byte) (int, error) { do(); return 0, io.EOF }

func TestWriteIf(t *testing.T) {
	f, dir := New("/"), t.TempDir()
	path, none := filepath.Join(dir, "f"), filepath.Join(dir, "sub", "none")
	reset := func() {
		put(t, path, "old")
		put(t, dir+"/gone", "")
		_, _ = os.Remove(dir+"/fresh"), os.Remove(dir+"/linked") // they may not be there
		if err := os.Chtimes(path, time.Now(), time.Unix(1_000_000_000, 5)); err != nil {
			t.Fatal(err)
		}
	}
	reset()
	if err := os.Symlink("f", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	is, other, any := versionOf(t, path), &wire.FileVersions{}, &wire.FileVersions{Any: true}
	for name, c := range map[string]struct {
		path string
		wire.FileCondition
		content io.Reader
	}{
		"another version":   {path, wire.FileCondition{Match: other}, nil},
		"through a link":    {filepath.Join(dir, "link"), wire.FileCondition{NoneMatch: is}, nil},
		"this version":      {path, wire.FileCondition{NoneMatch: is}, nil},
		"it exists":         {path, wire.FileCondition{NoneMatch: any}, nil},
		"too new":           {path, wire.FileCondition{NotAfter: new(int64)}, nil},
		"missing":           {none, wire.FileCondition{Match: any}, nil},
		"missing, by date":  {none, wire.FileCondition{NotAfter: new(int64(1 << 40))}, nil},
		"not a directory":   {path + "/f", wire.FileCondition{Match: any}, nil},
		"changed meanwhile": {path, wire.FileCondition{Match: is}, then(func() { put(t, path, "theirs") })},
		"created meanwhile": {filepath.Join(dir, "fresh"), wire.FileCondition{NoneMatch: any}, then(func() { put(t, dir+"/fresh", "theirs") })},
		"removed meanwhile": {filepath.Join(dir, "gone"), wire.FileCondition{Match: any}, then(func() { _ = os.Remove(dir + "/gone") })},
		"linked meanwhile":  {filepath.Join(dir, "linked"), wire.FileCondition{NoneMatch: any}, then(func() { _ = os.Symlink("nowhere", dir+"/linked") })},
	} {
		t.Run(name, func(t *testing.T) {
			reset()
			content := c.content
			if content == nil {
				content = unread{t}
			} else {
				content = io.MultiReader(strings.NewReader("new"), content)
			}
			_, err := f.WriteFile(t.Context(), wire.WriteFileArgs{Path: []byte(c.path), Parents: true, If: &c.FileCondition}, content)
			requireRefusal(t, err, wire.CodeUnmet)
			if text, err := os.ReadFile(c.path); err == nil && string(text) == "new" {
				t.Error("it was written")
			}
		})
	}
	reset()
	requireNames(t, dir, "f", "gone", "link") // no partial file, no parent of a file that was not written

	for _, c := range []struct {
		path string
		wire.FileCondition
	}{
		{path, wire.FileCondition{Match: versionOf(t, path)}},
		{path, wire.FileCondition{Match: any, NoneMatch: other, NotAfter: new(int64(1 << 40))}},
		{none, wire.FileCondition{NoneMatch: any}},
	} {
		if _, err := f.WriteFile(t.Context(), wire.WriteFileArgs{Path: []byte(c.path), Parents: true, If: &c.FileCondition}, strings.NewReader("new")); err != nil {
			t.Errorf("%+v: %v", c.FileCondition, err)
		}
		requireText(t, c.path, "new")
	}
}

// unread is a content that must not be read: the request is refused before.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the content was read")
	return 0, io.EOF
}

// TestOneOfManyWritersWins has writers replace the same version at the same time.
func TestOneOfManyWritersWins(t *testing.T) {
	f, path := New("/"), filepath.Join(t.TempDir(), "f")
	put(t, path, "old")
	is, absent := versionOf(t, path), &wire.FileVersions{Any: true}
	for name, condition := range map[string]wire.FileCondition{"match": {Match: is}, "none match": {NoneMatch: absent}} {
		var writers, ready sync.WaitGroup
		var won atomic.Int32
		if name == "none match" {
			path += ".new"
		}
		const all = 8
		ready.Add(all)
		for i := range all {
			writers.Go(func() {
				content := io.MultiReader(strings.NewReader(strings.Repeat("x", 10+i)), then(func() { ready.Done(); ready.Wait() }))
				if _, err := f.WriteFile(t.Context(), wire.WriteFileArgs{Path: []byte(path), If: &condition}, content); err == nil {
					won.Add(1)
				}
			})
		}
		writers.Wait()
		if won.Load() != 1 {
			t.Errorf("%s: %d writers replaced the same version", name, won.Load())
		}
	}
}

func TestRemoveIf(t *testing.T) {
	f, dir := New("/"), t.TempDir()
	path := filepath.Join(dir, "f")
	put(t, path, "old")
	remove := func(c wire.FileCondition) error {
		return f.RemoveFile(t.Context(), wire.RemoveFileArgs{Path: []byte(path), If: &c})
	}
	requireRefusal(t, remove(wire.FileCondition{Match: &wire.FileVersions{}}), wire.CodeUnmet)
	requireText(t, path, "old")
	if err := remove(wire.FileCondition{Match: versionOf(t, path)}); err != nil {
		t.Error(err)
	}
	requireNames(t, dir)
	requireRefusal(t, remove(wire.FileCondition{Match: &wire.FileVersions{Any: true}}), wire.CodeNotFound)
}
