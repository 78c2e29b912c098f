package file_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/fake/guest"
	"github.com/hatchvm/hatch/internal/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	owner = "acc_a"
	vmID  = "vm_a"
)

// hostVM is a host with one VM.
type hostVM = guest.VM[file.Guest, file.Mode]

// open returns a service with one guest, and the guest's root directory.
func open(t *testing.T) (*file.Service, string) {
	t.Helper()
	s, _, dir := openCounted(t)
	return s, dir
}

// openCounted is open for tests of when a guest is in use. When the test ends, each
// use must have been released once.
func openCounted(t *testing.T) (*file.Service, *hostVM, string) {
	t.Helper()
	dir := t.TempDir()
	files, err := guest.OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	host := &hostVM{ID: vmID, OwnerID: owner, Guest: files}
	t.Cleanup(func() {
		_ = files.Close()
		if err := host.Check(); err != nil {
			t.Error(err)
		}
	})
	return file.New(host), host, dir
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// callAll calls each method with the path, and returns the errors by method.
func callAll(ctx context.Context, s *file.Service, by, path string) map[string]error {
	failed := map[string]error{}
	_, content, err := s.Read(ctx, access.Owner(by), vmID, file.ReadSpec{Path: path, Length: -1})
	failed["read"] = closeContent(content, err)
	_, failed["write"] = s.Write(ctx, access.Owner(by), vmID, file.WriteSpec{Path: path}, strings.NewReader("x"))
	_, failed["stat"] = s.Stat(ctx, access.Owner(by), vmID, path)
	failed["list"] = s.List(ctx, access.Owner(by), vmID, path, func(file.Info) error { return nil })
	_, failed["mkdir"] = s.MakeDirectory(ctx, access.Owner(by), vmID, file.DirectorySpec{Path: path})
	_, failed["rename from"] = s.Rename(ctx, access.Owner(by), vmID, path, "/to")
	_, failed["rename to"] = s.Rename(ctx, access.Owner(by), vmID, "/from", path)
	failed["remove"] = s.Remove(ctx, access.Owner(by), vmID, file.RemoveSpec{Path: path})
	content, err = s.ReadTree(ctx, access.Owner(by), vmID, path)
	failed["read tree"] = closeContent(content, err)
	failed["write tree"] = s.WriteTree(ctx, access.Owner(by), vmID, file.TreeSpec{Path: path}, strings.NewReader(""))
	failed["watch"] = s.Watch(ctx, access.Owner(by), vmID, path, false, func() {}, func(file.Change) error { return nil })
	return failed
}

func closeContent(content io.Closer, err error) error {
	if err != nil {
		return err
	}
	return content.Close()
}

func TestOddPathsAreRefused(t *testing.T) {
	s, dir := open(t)
	for _, path := range []string{"", "tmp", "./tmp", "~/x", "/a\x00b", "/" + strings.Repeat("a", file.MaxPath)} {
		for verb, err := range callAll(t.Context(), s, owner, path) {
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("%s of %.20q: %v", verb, path, err)
			}
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("files were made: %v, %v", entries, err)
	}
}

func TestOthersVMsAreUnknown(t *testing.T) {
	s, _ := open(t)
	for verb, err := range callAll(t.Context(), s, "acc_b", "/tmp") {
		if !errs.HasCode(err, "vm_not_found") {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if err := s.CloudInitLog(t.Context(), access.Owner("acc_b"), vmID, -1, false, io.Discard); !errs.HasCode(err, "vm_not_found") {
		t.Errorf("cloud-init's log: %v", err)
	}
}

func TestTheRootStays(t *testing.T) {
	s, dir := open(t)
	put(t, dir, "etc/passwd", "root")
	for _, path := range []string{"/", "//", "/etc/..", "/./"} {
		err := s.Remove(t.Context(), access.Owner(owner), vmID, file.RemoveSpec{Path: path, Recursive: true})
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("removing %s: %v", path, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/passwd")); err != nil {
		t.Error(err)
	}
}

// TestOddNames writes, renames, reads and removes files of odd names.
func TestOddNames(t *testing.T) {
	s, dir := open(t)
	ctx := t.Context()
	for _, name := range []string{"/a b", "/ü+%41", "/\xff\xfe", "/line\nfeed", "/-rf", "/" + strings.Repeat("n", 250)} {
		if _, err := s.Write(ctx, access.Owner(owner), vmID, file.WriteSpec{Path: name}, strings.NewReader(name)); err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if _, err := s.Rename(ctx, access.Owner(owner), vmID, name, name+".b"); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		_, content, err := s.Read(ctx, access.Owner(owner), vmID, file.ReadSpec{Path: name + ".b", Length: -1})
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(content); err != nil || string(got) != name {
			t.Errorf("%q holds %q, %v", name, got, err)
		}
		_ = content.Close()
		if err := s.Remove(ctx, access.Owner(owner), vmID, file.RemoveSpec{Path: name + ".b"}); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestModesAndOwners(t *testing.T) {
	s, _ := open(t)
	write := func(mode uint32, owner_ file.Owner) error {
		_, err := s.Write(t.Context(), access.Owner(owner), vmID, file.WriteSpec{Path: "/f", Mode: &mode, Owner: &owner_}, strings.NewReader(""))
		return err
	}
	if err := write(0o10000, ""); !errs.HasCode(err, "invalid_mode") {
		t.Errorf("a mode of too many bits: %v", err)
	}
	for _, good := range []file.Owner{"", "root", "1000", "www-data:www-data", "0:0", "me:4294967294"} {
		if err := write(0o7777, good); err != nil {
			t.Errorf("owner %q: %v", good, err)
		}
	}
	for _, bad := range []file.Owner{":", ":g", "a:", "a:b:c", "a b", "4294967295", "1:99999999999", "\n", file.Owner(strings.Repeat("u", 65))} {
		if err := write(0o600, bad); !errs.HasCode(err, "invalid_owner") {
			t.Errorf("owner %q: %v", bad, err)
		}
	}
}

// TestWhichCallsWake puts the VM to sleep before each call.
func TestWhichCallsWake(t *testing.T) {
	s, host, _ := openCounted(t)
	host.Asleep.Store(true)
	for verb, err := range callAll(t.Context(), s, owner, "not absolute") {
		if !errs.Is(err, errs.Invalid) || !host.Asleep.Load() {
			t.Errorf("%s: %v, and it sleeps: %v", verb, err, host.Asleep.Load())
		}
	}
	if err := s.CloudInitLog(t.Context(), access.Owner(owner), vmID, -1, false, io.Discard); !errs.HasCode(err, "vm_not_running") {
		t.Errorf("cloud-init's log: %v", err)
	}
	if _, err := s.Stat(t.Context(), access.Owner(owner), vmID, "/"); err != nil || host.Asleep.Load() {
		t.Errorf("stat: %v, and it sleeps: %v", err, host.Asleep.Load())
	}
}

func TestCloudInitLog(t *testing.T) {
	s, dir := open(t)
	read := func(lines int) (string, error) {
		var out bytes.Buffer
		err := s.CloudInitLog(t.Context(), access.Owner(owner), vmID, lines, false, &out)
		return out.String(), err
	}
	if _, err := read(-1); !errs.HasCode(err, "cloud_init_log_not_found") || !errs.Is(err, errs.NotFound) {
		t.Errorf("without cloud-init: %v", err)
	}
	put(t, dir, "var/log/cloud-init.log", "began\n")
	if got, err := read(-1); err != nil || got != "began\n" {
		t.Errorf("without its output: %q, %v", got, err)
	}
	put(t, dir, "var/log/cloud-init-output.log", "one\ntwo\n")
	if got, err := read(1); err != nil || got != "two\n" {
		t.Errorf("the last line: %q, %v", got, err)
	}
}

func TestWatch(t *testing.T) {
	s, dir := open(t)
	put(t, dir, "in/old", "x")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var seen []file.Change
	err := s.Watch(ctx, access.Owner(owner), vmID, "/in", true, func() { put(t, dir, "in/sub/new", "y") }, func(c file.Change) error {
		seen = append(seen, c)
		if c.Path == "/in/sub/new" {
			return io.EOF
		}
		return nil
	})
	if err != io.EOF || len(seen) != 2 || seen[0].Path != "/in/sub" || seen[1].Kind != file.Created { //nolint:errorlint // what report returned, as it is
		t.Errorf("%v, %v", seen, err)
	}
}

// TestEachCallOpensTheGuestOnce calls each method, on a path that exists and on one
// that does not.
func TestEachCallOpensTheGuestOnce(t *testing.T) {
	s, host, dir := openCounted(t)
	put(t, dir, "exists/f", "x")
	for _, path := range []string{"/exists/f", "/none/f"} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		before := host.Opened()
		calls := len(callAll(ctx, s, owner, path))
		cancel()
		if opened := host.Opened() - before; opened != calls || host.InUse() != 0 {
			t.Errorf("%s: %d calls opened the guest %d times, and %d did not release it", path, calls, opened, host.InUse())
		}
	}
	_ = s.CloudInitLog(t.Context(), access.Owner(owner), vmID, -1, false, io.Discard)
	if host.InUse() != 0 {
		t.Error("cloud-init's log did not release the guest")
	}
}

func TestContentKeepsTheGuestInUse(t *testing.T) {
	s, host, dir := openCounted(t)
	put(t, dir, "f", "text")
	_, content, err := s.Read(t.Context(), access.Owner(owner), vmID, file.ReadSpec{Path: "/f", Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.ReadTree(t.Context(), access.Owner(owner), vmID, "/f")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(content); err != nil || string(text) != "text" {
		t.Errorf("read %q, %v", text, err)
	}
	if n := host.InUse(); n != 2 {
		t.Errorf("with two contents open the guest is in use %d times", n)
	}
	for _, c := range []io.Closer{content, content, tree} {
		_ = c.Close()
	}
	if n := host.InUse(); n != 0 {
		t.Errorf("after Close the guest is in use %d times", n)
	}
}

// TestCallerThatLeavesReleasesTheGuest has a caller that leaves during a watch, and
// one whose callback panics.
func TestCallerThatLeavesReleasesTheGuest(t *testing.T) {
	s, host, _ := openCounted(t)
	ctx, leave := context.WithCancel(t.Context())
	_ = s.Watch(ctx, access.Owner(owner), vmID, "/", true, leave, nil)
	func() {
		defer func() { _ = recover() }()
		_ = s.Watch(t.Context(), access.Owner(owner), vmID, "/", true, func() { panic("the transport") }, nil)
	}()
	if n := host.InUse(); n != 0 {
		t.Errorf("the guest is in use %d times", n)
	}
}
