package guest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hatchvm/hatch/internal/agent/files"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// fileAgent is an agent that serves the files of the host that runs the test.
type fileAgent struct {
	*fakeAgent
	wire.FileHandler
}

// openFiles returns a session with such an agent.
func openFiles(t *testing.T) file.Guest {
	t.Helper()
	a := newFakeAgent()
	g, _ := connect(t, func(context.Context) (net.Conn, error) {
		host, agent := net.Pipe()
		go func() {
			if server, err := wire.Accept(agent); err == nil {
				_ = server.Run(context.Background(), fileAgent{a, files.New(t.TempDir())})
			}
		}()
		return host, nil
	})
	return g
}

func requireCode(t *testing.T, err error, kind errs.Kind, code string) {
	t.Helper()
	if !errs.Is(err, kind) || !errs.HasCode(err, code) {
		t.Errorf("got %v, want %v, %s", err, kind, code)
	}
}

// TestConditionsReachTheAgent sends each part of a condition.
func TestConditionsReachTheAgent(t *testing.T) {
	g, path := openFiles(t), filepath.Join(t.TempDir(), "f")
	write := func(c file.Condition) (file.Info, error) {
		return g.WriteFile(t.Context(), file.WriteSpec{Path: path, If: &c}, strings.NewReader("text"))
	}
	any := &file.Versions{Any: true}
	_, err := write(file.Condition{Match: any})
	requireCode(t, err, errs.Unmet, "precondition_failed")
	now, err := write(file.Condition{NoneMatch: any})
	if err != nil {
		t.Fatal(err)
	}
	is := &file.Versions{List: []file.Version{{ModifiedNanos: now.ModifiedAt.UnixNano(), Size: now.Size}}}
	before := now.ModifiedAt.Add(-time.Minute)
	for _, c := range []file.Condition{{NoneMatch: any}, {NoneMatch: is}, {Match: &file.Versions{}}, {NotAfter: &before}} {
		_, err = write(c)
		requireCode(t, err, errs.Unmet, "precondition_failed")
		requireCode(t, g.RemoveFile(t.Context(), file.RemoveSpec{Path: path, If: &c}), errs.Unmet, "precondition_failed")
	}
	if err := g.RemoveFile(t.Context(), file.RemoveSpec{Path: path, If: &file.Condition{Match: is, NotAfter: &now.ModifiedAt}}); err != nil {
		t.Error(err)
	}
}

// names are file names with unusual characters.
var names = []string{"plain", "with space", "ünïcödé", "not\xff\xfeutf8", "new\nline", "-rf", strings.Repeat("n", 255), `back\slash`, "quo\"te"}

func TestFilesOfAnyName(t *testing.T) {
	g, dir := openFiles(t), t.TempDir()
	for i, name := range names {
		path, content := filepath.Join(dir, name), bytes.Repeat([]byte(name), 10_000*i)
		mode := uint32(0o640)
		info, err := g.WriteFile(t.Context(), file.WriteSpec{Path: path, Mode: &mode}, bytes.NewReader(content))
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if info.Path != path || info.Kind != file.Regular || info.Size != int64(len(content)) || info.Mode != mode {
			t.Errorf("%q: %+v", name, info)
		}
		if got := read(t, g, path, 0, -1); !bytes.Equal(got, content) {
			t.Errorf("%q: %d of %d bytes read", name, len(got), len(content))
		}
	}
	var listed []string
	if err := g.ListFiles(t.Context(), dir, func(i file.Info) error {
		listed = append(listed, strings.TrimPrefix(i.Path, dir+"/"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(names) || len(listed) != len(names) {
		t.Fatalf("%d entries, %d listed: %v", len(entries), len(listed), err)
	}
	for i, e := range entries {
		if e.Name() != listed[i] {
			t.Errorf("entry %d is %q, want %q", i, listed[i], e.Name())
		}
	}
}

func read(t *testing.T, g file.Guest, path string, offset, length int64) []byte {
	t.Helper()
	_, content, err := g.ReadFile(t.Context(), file.ReadSpec{Path: path, Offset: offset, Length: length})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(content)
	if err := errors.Join(err, content.Close()); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRanges(t *testing.T) {
	g, path := openFiles(t), filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("0123456789"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		offset, length int64
		want           string
	}{
		{0, -1, "0123456789"},
		{3, -1, "3456789"},
		{3, 2, "34"},
		{8, 100, "89"},
		{10, -1, ""},
		{11, 5, ""},
		{-3, -1, "789"},
		{-3, 2, "78"},
		{-100, 3, "012"},
		{0, 0, ""},
	} {
		if got := read(t, g, path, c.offset, c.length); string(got) != c.want {
			t.Errorf("from %d, %d bytes: %q, want %q", c.offset, c.length, got, c.want)
		}
	}
}

// TestLargeAndSparse writes and reads noise and holes.
func TestLargeAndSparse(t *testing.T) {
	g, dir := openFiles(t), t.TempDir()
	const part = 8 << 20
	noise := make([]byte, part)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	hole := make([]byte, part)
	whole := bytes.Join([][]byte{hole, noise, hole, noise[:12345], hole, hole[:777]}, nil)
	path := filepath.Join(dir, "large")
	if _, err := g.WriteFile(t.Context(), file.WriteSpec{Path: path}, bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	if onDisk, err := os.ReadFile(path); err != nil || !bytes.Equal(onDisk, whole) {
		t.Fatalf("the file differs: %d bytes, %v", len(onDisk), err)
	}
	if used := blocks(t, path); used > 2*part {
		t.Errorf("it uses %d bytes of the disk", used)
	}
	if got := read(t, g, path, 0, -1); !bytes.Equal(got, whole) {
		t.Error("Read returns other bytes")
	}
	var out bytes.Buffer
	_, content, err := g.ReadFile(t.Context(), file.ReadSpec{Path: path, Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := content.(io.WriterTo).WriteTo(&out); err != nil || !bytes.Equal(out.Bytes(), whole) {
		t.Errorf("WriteTo returns other bytes: %v", err)
	}
	_ = content.Close()
}

func TestBrokenUploadLeavesTheOldFile(t *testing.T) {
	g, dir := openFiles(t), t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the client has left")
	content := io.MultiReader(strings.NewReader(strings.Repeat("new", 1<<20)), iotest.ErrReader(broken))
	if _, err := g.WriteFile(t.Context(), file.WriteSpec{Path: path}, content); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stuck, _ := io.Pipe()
	cancelling := readerFunc(func([]byte) (int, error) { cancel(); _ = stuck.CloseWithError(ctx.Err()); return 0, ctx.Err() })
	_, err := g.WriteFile(ctx, file.WriteSpec{Path: path}, io.MultiReader(strings.NewReader("new"), cancelling))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	awaitOnly(t, dir, "f")
	if text, err := os.ReadFile(path); string(text) != "old" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// awaitOnly waits until the directory has only the entry name.
func awaitOnly(t *testing.T, dir string, name string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) == 1 && entries[0].Name() == name {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the directory has %v, %v", entries, err)
		}
	}
}

func TestFileErrorsHaveCodes(t *testing.T) {
	g, dir := openFiles(t), t.TempDir()
	for _, d := range []string{"full/x", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	write := func(path string, owner file.Owner) error {
		_, err := g.WriteFile(ctx, file.WriteSpec{Path: path, Owner: &owner}, strings.NewReader("x"))
		return err
	}
	readErr := func(path string) error {
		_, _, err := g.ReadFile(ctx, file.ReadSpec{Path: path, Length: -1})
		return err
	}
	rename := func(from, to string) error {
		_, err := g.RenameFile(ctx, from, to)
		return err
	}
	mkdir := func(path string, parents bool) error {
		_, err := g.MakeDirectory(ctx, path, 0o755, "", parents)
		return err
	}
	for name, c := range map[string]struct {
		err  error
		kind errs.Kind
		code string
	}{
		"read nothing":         {readErr(dir + "/no"), errs.NotFound, "file_not_found"},
		"read a directory":     {readErr(dir), errs.Conflict, "is_a_directory"},
		"read a device":        {readErr("/dev/null"), errs.Conflict, "not_a_file"},
		"read below a file":    {readErr(dir + "/f/x"), errs.Conflict, "not_a_directory"},
		"read no path":         {readErr("f"), errs.Invalid, "invalid_path"},
		"read a long path":     {readErr("/" + strings.Repeat("x/", 5000)), errs.Invalid, "invalid_path"},
		"read a long name":     {readErr(dir + "/" + strings.Repeat("x", 300)), errs.Invalid, "invalid_path"},
		"write in nothing":     {write(dir+"/no/f", ""), errs.NotFound, "file_not_found"},
		"write to a directory": {write(dir+"/empty", ""), errs.Conflict, "is_a_directory"},
		"write to a device":    {write("/dev/null", ""), errs.Conflict, "not_a_file"},
		"write for unknown":    {write(dir+"/f", "nosuchuser"), errs.Invalid, "invalid_owner"},
		"remove nothing":       {g.RemoveFile(ctx, file.RemoveSpec{Path: dir + "/no"}), errs.NotFound, "file_not_found"},
		"remove no tree":       {g.RemoveFile(ctx, file.RemoveSpec{Path: dir + "/no", Recursive: true}), errs.NotFound, "file_not_found"},
		"remove a full dir":    {g.RemoveFile(ctx, file.RemoveSpec{Path: dir + "/full"}), errs.Conflict, "directory_not_empty"},
		"remove the root":      {g.RemoveFile(ctx, file.RemoveSpec{Path: "/", Recursive: true}), errs.Invalid, "invalid_path"},
		"make a file's path":   {mkdir(dir+"/f", false), errs.Conflict, "file_exists"},
		"make parents of file": {mkdir(dir+"/f", true), errs.Conflict, "not_a_directory"},
		"make without parent":  {mkdir(dir+"/no/no", false), errs.NotFound, "file_not_found"},
		"rename nothing":       {rename(dir+"/no", dir+"/x"), errs.NotFound, "file_not_found"},
		"rename to a full dir": {rename(dir+"/empty", dir+"/full"), errs.Conflict, "directory_not_empty"},
		"rename to /proc":      {rename(dir+"/f", "/dev/shm/hatch-test"), errs.Conflict, "other_filesystem"},
		"list a file":          {g.ListFiles(ctx, dir+"/f", nil), errs.Conflict, "not_a_directory"},
		"watch nothing":        {g.WatchFiles(ctx, dir+"/no", true, nil, nil), errs.NotFound, "file_not_found"},
		"tail a directory":     {g.TailFile(ctx, dir, 1, true, io.Discard), errs.Conflict, "is_a_directory"},
		"write no archive":     {g.WriteTree(ctx, file.TreeSpec{Path: dir}, strings.NewReader(strings.Repeat("junk", 500))), errs.Invalid, "invalid_archive"},
	} {
		t.Run(name, func(t *testing.T) { requireCode(t, c.err, c.kind, c.code) })
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("entries are left: %v, %v", entries, err)
	}
}

func TestDirectoriesAreCreatedRenamedAndRemoved(t *testing.T) {
	g, dir := openFiles(t), t.TempDir()
	outside := filepath.Join(t.TempDir(), "kept")
	if err := os.WriteFile(outside, []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	info, err := g.MakeDirectory(ctx, dir+"/a/b//c/", 0o2750, "7:8", true)
	if err != nil || info.Kind != file.Directory || info.Mode != 0o2750 || info.UID != 7 || info.GID != 8 {
		t.Errorf("made %+v, %v", info, err)
	}
	if above, err := g.StatFile(ctx, dir+"/a/b"); err != nil || above.Mode != 0o755 || above.UID != 7 {
		t.Errorf("its parent: %+v, %v", above, err)
	}
	if _, err := g.MakeDirectory(ctx, dir+"/a/b/c", 0o700, "", true); err != nil {
		t.Errorf("made again: %v", err)
	}
	if err := os.Symlink(filepath.Dir(outside), dir+"/a/link"); err != nil {
		t.Fatal(err)
	}
	if link, err := g.StatFile(ctx, dir+"/a/link"); err != nil || link.Kind != file.Symlink || link.Target != filepath.Dir(outside) {
		t.Errorf("the link is %+v, %v", link, err)
	}
	if info, err := g.RenameFile(ctx, dir+"/a", dir+"/z"); err != nil || info.Path != dir+"/z" {
		t.Errorf("renamed: %+v, %v", info, err)
	}
	if err := g.RemoveFile(ctx, file.RemoveSpec{Path: dir + "/z", Recursive: true}); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}

func TestTreesAreCopied(t *testing.T) {
	g, dir := openFiles(t), t.TempDir()
	from := filepath.Join(dir, "tree")
	makeTree(t, from)
	archive, err := g.ReadTree(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "to")
	if err := g.WriteTree(t.Context(), file.TreeSpec{Path: to}, archive); err != nil {
		t.Fatal(err)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	want, got := describeTree(t, from), describeTree(t, filepath.Join(to, "tree"))
	delete(want, "pipe")
	if !reflect.DeepEqual(want, got) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestBrokenArchiveIsAnError(t *testing.T) {
	g, dir := openFiles(t), t.TempDir()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for i := range 3 {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{'x'}, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	broken := errors.New("the client has left")
	cut := io.MultiReader(bytes.NewReader(archive.Bytes()[:5<<19]), iotest.ErrReader(broken))
	if err := g.WriteTree(t.Context(), file.TreeSpec{Path: dir}, cut); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	requireCode(t, g.WriteTree(t.Context(), file.TreeSpec{Path: dir}, bytes.NewReader(archive.Bytes()[:5<<19])), errs.Invalid, "invalid_archive")
	if _, err := os.Stat(filepath.Join(dir, "2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a partial file is left: %v", err)
	}
}
