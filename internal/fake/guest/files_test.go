package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openFilesOf returns a guest's files with some in it, and their directory.
func openFilesOf(t *testing.T, content map[string]string) (*Files, string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	files, err := OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	return files, dir
}

func requireContent(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
	}
}

func TestReadFile(t *testing.T) {
	files, _ := openFilesOf(t, map[string]string{"f": "0123456789"})
	for name, c := range map[string]struct {
		spec file.ReadSpec
		want string
	}{
		"all":             {file.ReadSpec{Length: -1}, "0123456789"},
		"a part":          {file.ReadSpec{Offset: 2, Length: 3}, "234"},
		"the end":         {file.ReadSpec{Offset: -3, Length: -1}, "789"},
		"more than it is": {file.ReadSpec{Offset: -99, Length: 99}, "0123456789"},
		"beyond its end":  {file.ReadSpec{Offset: 99, Length: 1}, ""},
		"nothing":         {file.ReadSpec{Length: 0}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.spec.Path = "/f"
			info, content, err := files.ReadFile(t.Context(), c.spec)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = content.Close() }()
			if got, err := io.ReadAll(content); err != nil || string(got) != c.want || info.Size != 10 || info.Path != "/f" {
				t.Errorf("read %q of %+v, %v; want %q", got, info, err, c.want)
			}
		})
	}
}

func TestErrorsOfFilesAreAnAgents(t *testing.T) {
	files, _ := openFilesOf(t, map[string]string{"f": "text", "full/f": ""})
	read := func(path string) error {
		_, _, err := files.ReadFile(t.Context(), file.ReadSpec{Path: path, Length: -1})
		return err
	}
	for name, c := range map[string]struct {
		err  error
		kind errs.Kind
		code string
	}{
		"a missing file":        {read("/none"), errs.NotFound, "file_not_found"},
		"a directory":           {read("/full"), errs.Conflict, "is_a_directory"},
		"below a file":          {read("/f/x"), errs.Conflict, "not_a_directory"},
		"a full directory":      {files.RemoveFile(t.Context(), file.RemoveSpec{Path: "/full"}), errs.Conflict, "directory_not_empty"},
		"no file to remove":     {files.RemoveFile(t.Context(), file.RemoveSpec{Path: "/none", Recursive: true}), errs.NotFound, "file_not_found"},
		"an existing directory": {second(files.MakeDirectory(t.Context(), "/full", 0o755, "", false)), errs.Conflict, "file_exists"},
		"write to a directory":  {second(files.WriteFile(t.Context(), file.WriteSpec{Path: "/full"}, strings.NewReader("x"))), errs.Conflict, "is_a_directory"},
		"no parent":             {second(files.WriteFile(t.Context(), file.WriteSpec{Path: "/none/f"}, strings.NewReader("x"))), errs.NotFound, "file_not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			if !errs.Is(c.err, c.kind) || !errs.HasCode(c.err, c.code) {
				t.Errorf("the error is %v; want %s with code %s", c.err, c.kind, c.code)
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

func TestWriteFile(t *testing.T) {
	files, dir := openFilesOf(t, map[string]string{"f": "old"})
	write := func(path, text string) (file.Info, error) {
		return files.WriteFile(t.Context(), file.WriteSpec{Path: path, Parents: true}, strings.NewReader(text))
	}
	if info, err := write("/f", "new"); err != nil || info.Size != 3 || info.Mode != 0o600 {
		t.Errorf("an existing file is %+v, %v", info, err)
	}
	requireContent(t, filepath.Join(dir, "f"), "new")
	if info, err := write("/a/b/f", "made"); err != nil || info.Mode != 0o644 {
		t.Errorf("a new file is %+v, %v", info, err)
	}
	broken := errors.New("broken")
	_, err := files.WriteFile(t.Context(), file.WriteSpec{Path: "/f"}, io.MultiReader(strings.NewReader("half"), brokenReader{broken}))
	if !errors.Is(err, broken) {
		t.Errorf("content that breaks off: %v", err)
	}
	requireContent(t, filepath.Join(dir, "f"), "new")
	if err := os.Symlink("../../f", filepath.Join(dir, "a", "b", "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := write("/a/b/link", "through a link"); err != nil {
		t.Error(err)
	}
	requireContent(t, filepath.Join(dir, "f"), "through a link")
	if info, err := files.StatFile(t.Context(), "/a/b/link"); err != nil || info.Kind != file.Symlink || info.Target != "../../f" {
		t.Errorf("the link is %+v, %v", info, err)
	}
	left := 0
	if err := files.ListFiles(t.Context(), "/", func(file.Info) error { left++; return nil }); err != nil || left != 2 {
		t.Errorf("there are %d files instead of 2, %v", left, err)
	}
}

type brokenReader struct{ err error }

func (r brokenReader) Read([]byte) (int, error) { return 0, r.err }

func TestNoPathLeadsOutOfTheGuest(t *testing.T) {
	files, dir := openFilesOf(t, map[string]string{"in/f": "inside"})
	outside := filepath.Join(filepath.Dir(dir), "outside")
	if err := os.WriteFile(outside, []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"relative": "../../outside", "absolute": outside, "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(dir, "in", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/../outside", "/in/../../outside", "/in/relative", "/in/absolute", "/in/loop"} {
		t.Run(path, func(t *testing.T) {
			if _, content, err := files.ReadFile(t.Context(), file.ReadSpec{Path: path, Length: -1}); err == nil {
				_ = content.Close()
				t.Error("it can be read")
			}
			// Dots at the root lead to the root, so that some make a file inside.
			_, _ = files.WriteFile(t.Context(), file.WriteSpec{Path: path}, strings.NewReader("x"))
			_ = files.RemoveFile(t.Context(), file.RemoveSpec{Path: "/outside"})
			requireContent(t, outside, "outside")
		})
	}
}

func TestDirectories(t *testing.T) {
	files, _ := openFilesOf(t, map[string]string{"d/b": "", "d/a": "", "d/c/x": ""})
	for range 2 { // an existing one is no error
		if info, err := files.MakeDirectory(t.Context(), "/e/f", 0o1750, "", true); err != nil || info.Kind != file.Directory || info.Mode != 0o1750 {
			t.Errorf("made %+v, %v", info, err)
		}
	}
	var names []string
	err := files.ListFiles(t.Context(), "/d", func(i file.Info) error { names = append(names, i.Path); return nil })
	if err != nil || !slices.Equal(names, []string{"/d/a", "/d/b", "/d/c"}) {
		t.Errorf("listed %v, %v", names, err)
	}
	if info, err := files.RenameFile(t.Context(), "/d/a", "/d/b"); err != nil || info.Path != "/d/b" {
		t.Errorf("renamed to %+v, %v", info, err)
	}
	if err := files.RemoveFile(t.Context(), file.RemoveSpec{Path: "/d", Recursive: true}); err != nil {
		t.Error(err)
	}
	if _, err := files.StatFile(t.Context(), "/d"); !errs.HasCode(err, "file_not_found") {
		t.Errorf("it is still there: %v", err)
	}
}

func TestTreesArePackedAndUnpacked(t *testing.T) {
	files, dir := openFilesOf(t, map[string]string{"from/f": "text", "from/sub/x": ""})
	if err := os.Symlink("f", filepath.Join(dir, "from", "link")); err != nil {
		t.Fatal(err)
	}
	archive, err := files.ReadTree(t.Context(), "/from")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = archive.Close() }()
	if err := files.WriteTree(t.Context(), file.TreeSpec{Path: "/to"}, archive); err != nil {
		t.Fatal(err)
	}
	requireContent(t, filepath.Join(dir, "to", "from", "f"), "text")
	requireContent(t, filepath.Join(dir, "to", "from", "sub", "x"), "")
	if to, err := os.Readlink(filepath.Join(dir, "to", "from", "link")); err != nil || to != "f" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	if err := files.WriteTree(t.Context(), file.TreeSpec{Path: "/to"}, strings.NewReader("no archive")); err == nil {
		t.Error("what is no archive was unpacked")
	}
}

func TestWatchFilesSeesChanges(t *testing.T) {
	files, dir := openFilesOf(t, map[string]string{"d/old": "x", "d/gone": "x"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	began := func() {
		if err := errors.Join(os.Remove(filepath.Join(dir, "d", "gone")), os.WriteFile(filepath.Join(dir, "d", "new"), nil, 0o600),
			os.WriteFile(filepath.Join(dir, "d", "old"), []byte("longer"), 0o600)); err != nil {
			t.Error(err)
		}
	}
	seen := map[string]bool{}
	want := map[string]bool{"create /d/new": true, "write /d/old": true, "remove /d/gone": true}
	err := files.WatchFiles(ctx, "/d", false, began, func(c file.Change) error {
		if seen[string(c.Kind)+" "+c.Path] = true; len(seen) == len(want) {
			cancel()
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for change := range want {
		if !seen[change] {
			t.Errorf("%q was not seen: %v", change, slices.Sorted(maps.Keys(seen)))
		}
	}
}

func TestTailFile(t *testing.T) {
	files, dir := openFilesOf(t, map[string]string{"log": "1\n2\n3\n"})
	for lines, want := range map[int]string{-1: "1\n2\n3\n", 0: "", 2: "2\n3\n", 9: "1\n2\n3\n"} {
		var out bytes.Buffer
		if err := files.TailFile(t.Context(), "/log", lines, false, &out); err != nil || out.String() != want {
			t.Errorf("the last %d lines are %q, %v", lines, out.String(), err)
		}
	}
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- files.TailFile(ctx, "/log", 1, true, w) }()
	got := make([]byte, 2)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "3\n" {
		t.Errorf("it begins with %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "log"), []byte("1\n2\n3\n4\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, got); err != nil {
		t.Error(err)
	}
	cancel()
	_ = r.Close()
	if err := <-done; err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}
