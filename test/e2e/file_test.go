//go:build system

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

const (
	largeFile   = 128 << 20        // bytes: twice what hatchd may grow by
	largeDisk   = 240              // MiB: the file, and the overhead of ext4
	copyLimit   = 10 * time.Minute // both ways, emulated, on a busy machine
	changeLimit = 30 * time.Second
)

// testFiles works with files of a guest without a network, sshd and cloud-init.
func testFiles(t *testing.T, w *world) {
	body := minimal()
	body.EnableNetwork = new(false)
	v := w.create(t, body, client.CreateOptions{Wait: "ready"})
	for _, part := range []struct {
		name string
		run  func(*testing.T, *world, string)
	}{
		{"trees are copied both ways", testTrees},
		{"copies keep what is asked for", testCopies},
		{"a broken upload leaves the old file", testBrokenUpload},
		{"a full disk is reported", testGuestDiskFull},
		{"changes are reported", testWatch},
		{"modes, owners, ranges", testFileDetails},
		{"conditions", testFileConditions},
		{"logs", testLogsOfMinimal},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, w, v.ID) })
	}
	w.delete(t, v.ID)
}

// testLargeFile writes a file of 128 MiB and reads it.
func testLargeFile(t *testing.T, w *world) {
	body := minimal()
	body.DiskMiB, body.EnableNetwork = new(largeDisk), new(false)
	v := w.create(t, body, client.CreateOptions{Wait: "ready"})
	ctx, cancel := context.WithTimeout(t.Context(), copyLimit)
	defer cancel()

	before := w.peakMemory(t)
	sent := sha256.New()
	began := time.Now()
	f, err := w.client.WriteFile(ctx, v.ID, "/large", io.TeeReader(randomBytes(largeFile), sent), client.WriteOptions{})
	if err != nil || f.Size != largeFile {
		t.Fatalf("cannot write 128 MiB: %v, %+v", err, f)
	}
	took(t, "128 MiB up", began)
	began = time.Now()
	content, err := w.client.ReadFile(ctx, v.ID, "/large", client.FilePart{})
	if err != nil {
		t.Fatal(err)
	}
	got := sha256.New()
	if n, err := io.Copy(got, content); err != nil || n != largeFile {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	_ = content.Close()
	took(t, "128 MiB down", began)
	if up, down := hex.EncodeToString(sent.Sum(nil)), hex.EncodeToString(got.Sum(nil)); up != down {
		t.Errorf("sent %s, got %s", up, down)
	}
	if grown := w.peakMemory(t) - before; grown > 64 {
		t.Errorf("hatchd has grown by %d MiB", grown)
	}
	w.delete(t, v.ID)
}

// randomBytes returns size bytes that do not compress and are the same each time.
func randomBytes(size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{7}), size)
}

// peakMemory returns the peak of hatchd's resident memory, in MiB.
func (w *world) peakMemory(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.daemon.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var kib int
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("cannot read hatchd's memory: %v", err)
	}
	return kib >> 10
}

// testTrees copies odd names and links with hatch cp, in and out again.
func testTrees(t *testing.T, w *world, id string) {
	source := filepath.Join(t.TempDir(), "tree")
	for name, content := range map[string]string{
		"plain": "x", "a b/c d": "spaces", "ünïcode/日本": "utf-8", "bytes-\xff\xfe": "latin", "line\nfeed": "", "-rf": "dash",
		"deep/" + strings.Repeat("n/", 40) + strings.Repeat("long", 60): "deep", "large": strings.Repeat("0123456789abcdef", 1<<16),
	} {
		path := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"link": "a b/c d", "deep/up": "../plain", "dangling": "no\xffwhere", "dir": "a b"} {
		if err := os.Symlink(target, filepath.Join(source, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(source, "empty"), 0o500); err != nil {
		t.Fatal(err)
	}
	w.hatch(t, "cp", source, id+":/root/new")
	w.hatch(t, "cp", source, id+":/root")
	back := t.TempDir()
	w.hatch(t, "cp", id+":/root/new", back)
	w.hatch(t, "cp", id+":/root/tree/.", filepath.Join(back, "other"))
	want := describeTree(t, source)
	if len(want) < 50 {
		t.Fatalf("the tree has %d files", len(want))
	}
	for _, copied := range []string{"new", "other"} {
		got := describeTree(t, filepath.Join(back, copied))
		for name := range want {
			if got[name] != want[name] {
				t.Errorf("%s: %q is %s, want %s", copied, name, got[name], want[name])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s has %d files, want %d: %q", copied, len(got), len(want), slices.Sorted(maps.Keys(got)))
		}
	}
	f, err := w.client.StatFile(t.Context(), id, "/root/tree/bytes-\xff\xfe")
	if err != nil || client.NameOf(f) != "bytes-\xff\xfe" || f.UID != 0 || f.Mode != "0640" {
		t.Errorf("a name that is not UTF-8: %+v, %v", f, err)
	}
	if err := w.client.RemoveFile(t.Context(), id, "/root/tree", true); err != nil {
		t.Error(err)
	}
}

// describeTree describes every file below dir, by its name.
func describeTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(name)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		what := st.Mode().String()
		switch {
		case st.Mode().IsRegular():
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %x %s", sha256.Sum256(content), st.ModTime())
		case st.Mode().Type() == fs.ModeSymlink:
			target, _ := os.Readlink(name)
			what += " " + target
		}
		seen[rel] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// read returns a file's content.
func (w *world) read(t *testing.T, id, path string, part client.FilePart) string {
	t.Helper()
	content, err := w.client.ReadFile(t.Context(), id, path, part)
	if err != nil {
		t.Fatalf("cannot read %s: %v", path, err)
	}
	defer func() { _ = content.Close() }()
	text, err := io.ReadAll(content)
	if err != nil {
		t.Fatalf("cannot read %s: %v", path, err)
	}
	return string(text)
}

func (w *world) write(t *testing.T, id, path, content string) {
	t.Helper()
	if _, err := w.client.WriteFile(t.Context(), id, path, strings.NewReader(content), client.WriteOptions{}); err != nil {
		t.Fatalf("cannot write %s: %v", path, err)
	}
}

// names lists a directory of the guest.
func (w *world) names(t *testing.T, id, path string) []string {
	t.Helper()
	names := []string{}
	for f, err := range w.client.ListFiles(t.Context(), id, path) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, client.NameOf(f))
	}
	return names
}

var errCut = errors.New("the client has gone")

func testBrokenUpload(t *testing.T, w *world, id string) {
	if _, err := w.client.MakeDirectory(t.Context(), id, "/broken", client.DirectoryOptions{}); err != nil {
		t.Fatal(err)
	}
	w.write(t, id, "/broken/f", "old")
	half := io.MultiReader(randomBytes(3<<20), failing{})
	if _, err := w.client.WriteFile(t.Context(), id, "/broken/f", half, client.WriteOptions{}); !errors.Is(err, errCut) {
		t.Errorf("a broken upload: %v", err)
	}
	deadline := time.Now().Add(normalReply)
	for names := w.names(t, id, "/broken"); !slices.Equal(names, []string{"f"}); names = w.names(t, id, "/broken") {
		if time.Now().After(deadline) { // the guest removes its part a moment later
			t.Fatalf("the directory has %q", names)
		}
	}
	if got := w.read(t, id, "/broken/f", client.FilePart{}); got != "old" {
		t.Errorf("the old file is %.20q", got)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errCut }

// testGuestDiskFull writes more than fits on the disk, and then a small file.
func testGuestDiskFull(t *testing.T, w *world, id string) {
	w.write(t, id, "/root/existing", "old")
	_, err := w.client.WriteFile(t.Context(), id, "/root/existing", randomBytes(2*smallDisk<<20), client.WriteOptions{})
	if !client.HasCode(err, "guest_disk_full") || !client.IsExhausted(err) {
		t.Errorf("a full disk: %v", err)
	}
	if got := w.read(t, id, "/root/existing", client.FilePart{}); got != "old" {
		t.Errorf("the old file is %.20q", got)
	}
	w.write(t, id, "/root/after", "space again")
	if names := w.names(t, id, "/root"); slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, ".") && strings.Contains(n, "hatch") }) {
		t.Errorf("the directory has %q", names)
	}
}

func testWatch(t *testing.T, w *world, id string) {
	ctx, cancel := context.WithTimeout(t.Context(), changeLimit)
	defer cancel()
	if _, err := w.client.MakeDirectory(ctx, id, "/watched", client.DirectoryOptions{}); err != nil {
		t.Fatal(err)
	}
	changes, err := w.client.WatchFiles(ctx, id, "/watched", true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.MakeDirectory(ctx, id, "/watched/sub", client.DirectoryOptions{}); err != nil {
		t.Fatal(err)
	}
	w.write(t, id, "/watched/sub/a", "x")
	if _, err := w.client.RenameFile(ctx, id, "/watched/sub/a", "/watched/b"); err != nil {
		t.Fatal(err)
	}
	if err := w.client.RemoveFile(ctx, id, "/watched/b", false); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for change, err := range changes {
		if err != nil {
			t.Fatalf("the watch ended with %v after %q", err, seen)
		}
		seen = append(seen, change.Kind+" "+change.Path)
		if change.Kind == "remove" && change.Path == "/watched/b" {
			break
		}
	}
	for _, want := range []string{"create /watched/sub", "rename /watched/b"} {
		if !slices.Contains(seen, want) {
			t.Errorf("%s was not reported in %q", want, seen)
		}
	}
	if !slices.ContainsFunc(seen, func(s string) bool { return strings.HasSuffix(s, "/watched/sub/a") }) {
		t.Errorf("the file below a new directory was not reported in %q", seen)
	}
}

func testFileDetails(t *testing.T, w *world, id string) {
	ctx := t.Context()
	mode := uint32(0o4750)
	f, err := w.client.WriteFile(ctx, id, "/a/b/c", strings.NewReader("0123456789"), client.WriteOptions{Mode: &mode, Owner: "1000:1001", Parents: true})
	if err != nil || f.Mode != "4750" || f.UID != 1000 || f.GID != 1001 || f.Size != 10 {
		t.Errorf("wrote %+v, %v", f, err)
	}
	if got := w.read(t, id, "/a/b/c", client.FilePart{Offset: -3, Length: 2}); got != "78" {
		t.Errorf("the range is %q", got)
	}
	w.write(t, id, "/a/b/c", "new")
	if f, err := w.client.StatFile(ctx, id, "/a/b/c"); err != nil || f.UID != 1000 || f.Mode != "4750" {
		t.Errorf("the replaced file: %+v, %v", f, err)
	}
	if got := w.read(t, id, "/proc/meminfo", client.FilePart{}); !strings.Contains(got, "MemTotal:") {
		t.Errorf("/proc/meminfo is %q", got)
	}
	for path, code := range map[string]string{"/none": "file_not_found", "/a/b": "is_a_directory", "/dev/null": "not_a_file", "/a/b/c/d": "not_a_directory"} {
		t.Run(code, func(t *testing.T) {
			if _, err := w.client.ReadFile(ctx, id, path, client.FilePart{}); !client.HasCode(err, code) {
				t.Errorf("reading %s: %v", path, err)
			}
		})
	}
	began := time.Now()
	w.write(t, id, "/a/small", "x")
	took(t, "a small write", began)
}

// testFileConditions replaces files that another writer has changed, or not.
func testFileConditions(t *testing.T, w *world, id string) {
	ctx := t.Context()
	write := func(text string, opts client.WriteOptions) error {
		_, err := w.client.WriteFile(ctx, id, "/shared", strings.NewReader(text), opts)
		return err
	}
	tag := func() string {
		content, err := w.client.ReadFile(ctx, id, "/shared", client.FilePart{})
		if err != nil {
			t.Fatal(err)
		}
		_ = content.Close()
		return content.ETag
	}
	if err := write("mine", client.WriteOptions{IfNoneMatch: "*"}); err != nil {
		t.Fatalf("a new file: %v", err)
	}
	if err := write("again", client.WriteOptions{IfNoneMatch: "*"}); !client.HasCode(err, "precondition_failed") {
		t.Errorf("a file that exists: %v", err)
	}
	seen := tag()
	if err := write("mine, too", client.WriteOptions{IfMatch: `"other", ` + seen}); err != nil {
		t.Errorf("an unchanged file: %v", err)
	}
	seen = tag()
	if _, err := w.client.RunExec(ctx, id, api.RunExec{Command: api.Command{Shell: "echo theirs >/shared"}}); err != nil {
		t.Fatal(err)
	}
	if err := write("lost update", client.WriteOptions{IfMatch: seen}); !client.IsPreconditionFailed(err) {
		t.Errorf("a file that the guest has changed: %v", err)
	}
	if got := w.read(t, id, "/shared", client.FilePart{}); got != "theirs\n" {
		t.Errorf("it is %q", got)
	}
}

// testLogsOfMinimal reads the logs of a guest without cloud-init, and of a stopped
// VM.
func testLogsOfMinimal(t *testing.T, w *world, id string) {
	if _, err := w.log(t, id, client.LogOptions{Source: "cloud-init", Follow: true}); !client.HasCode(err, "cloud_init_log_not_found") {
		t.Errorf("cloud-init's log: %v", err)
	}
	if _, err := w.log(t, id, client.LogOptions{Source: "vmm"}); err != nil {
		t.Errorf("the VMM's log: %v", err)
	}
	vmmLog := w.data("vms", id, "vmm.log")
	if err := os.WriteFile(vmmLog, []byte("one\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.StopVM(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got, err := w.log(t, id, client.LogOptions{Source: "vmm", Tail: 1, Follow: true}); err != nil || !strings.HasPrefix(got, "two\n") {
		t.Errorf("the VMM's log of a stopped VM: %q, %v", got, err)
	}
	if _, err := w.log(t, id, client.LogOptions{Source: "cloud-init"}); !client.IsConflict(err) {
		t.Errorf("cloud-init's log of a stopped VM: %v", err)
	}
	if _, err := w.client.StatFile(t.Context(), id, "/"); !client.HasCode(err, "vm_not_running") {
		t.Errorf("a file of a stopped VM: %v", err)
	}
}

func (w *world) log(t *testing.T, id string, opts client.LogOptions) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), normalReply)
	defer cancel()
	log, err := w.client.VMLogs(ctx, id, opts)
	if err != nil {
		return "", err
	}
	defer func() { _ = log.Close() }()
	text, err := io.ReadAll(log)
	return string(text), err
}

// testCloudInitLog reads cloud-init's log in a running guest.
func testCloudInitLog(t *testing.T, w *world) {
	v := w.shared(t, alpha)
	got, err := w.log(t, v.ID, client.LogOptions{Source: "cloud-init"})
	if err != nil || !strings.Contains(got, "Cloud-init v.") || !strings.Contains(got, "finished at") {
		t.Errorf("cloud-init's log is %.300q, %v", got, err)
	}
	last := w.hatch(t, "logs", "--source", "cloud-init", "-n", "1", alpha)
	if strings.Count(last, "\n") != 1 || !strings.HasSuffix(got, last) {
		t.Errorf("its last line is %q", last)
	}
	if f, err := w.client.StatFile(t.Context(), v.ID, "/etc/hostname"); err != nil || f.Kind != api.FileRegular || f.User != "root" {
		t.Errorf("/etc/hostname: %+v, %v", f, err)
	}
	w.hatch(t, "cp", "-L", v.ID+":/etc/os-release", t.TempDir())
}
