package file_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/file/filetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	owner = "acc_a"
	vmID  = "vm_a"
)

// oneGuest has the guest of one owner's VM.
type oneGuest struct {
	file.Guest
	asleep atomic.Bool
}

func (g *oneGuest) FileGuest(ctx context.Context, by, id string) (file.Guest, error) {
	if by == owner && id == vmID {
		g.asleep.Store(false)
	}
	return g.AwakeFileGuest(ctx, by, id)
}

func (g *oneGuest) AwakeFileGuest(_ context.Context, by, id string) (file.Guest, error) {
	switch {
	case by != owner || id != vmID:
		return nil, errs.New(errs.NotFound, "vm_not_found", "there is no VM %q", id)
	case g.asleep.Load():
		return nil, errs.New(errs.Conflict, "vm_not_running", "cannot look inside VM %s: it is snapshotted", id)
	}
	return g.Guest, nil
}

// open returns a service with one guest, and the guest's root directory.
func open(t *testing.T) (*file.Service, string) {
	t.Helper()
	dir := t.TempDir()
	guest, err := filetest.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = guest.Close() })
	return file.New(&oneGuest{Guest: guest}), dir
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

// everything calls each method that takes a path with it, and returns the
// errors by method.
func everything(ctx context.Context, s *file.Service, by, path string) map[string]error {
	faults := map[string]error{}
	_, _, faults["read"] = s.Read(ctx, by, vmID, file.ReadSpec{Path: path, Length: -1})
	_, faults["write"] = s.Write(ctx, by, vmID, file.WriteSpec{Path: path}, strings.NewReader("x"))
	_, faults["stat"] = s.Stat(ctx, by, vmID, path)
	faults["list"] = s.List(ctx, by, vmID, path, func(file.Info) error { return nil })
	_, faults["mkdir"] = s.MakeDirectory(ctx, by, vmID, file.DirectorySpec{Path: path})
	_, faults["rename from"] = s.Rename(ctx, by, vmID, path, "/to")
	_, faults["rename to"] = s.Rename(ctx, by, vmID, "/from", path)
	faults["remove"] = s.Remove(ctx, by, vmID, path, false)
	_, faults["read tree"] = s.ReadTree(ctx, by, vmID, path)
	faults["write tree"] = s.WriteTree(ctx, by, vmID, file.TreeSpec{Path: path}, strings.NewReader(""))
	faults["watch"] = s.Watch(ctx, by, vmID, path, false, func() {}, func(file.Change) error { return nil })
	return faults
}

func TestOddPathsAreRefused(t *testing.T) {
	s, dir := open(t)
	for _, path := range []string{"", "tmp", "./tmp", "~/x", "/a\x00b", "/" + strings.Repeat("a", file.MaxPath)} {
		for verb, err := range everything(t.Context(), s, owner, path) {
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("%s of %.20q: %v", verb, path, err)
			}
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("something was made: %v, %v", entries, err)
	}
}

func TestOthersVMsAreUnknown(t *testing.T) {
	s, _ := open(t)
	for verb, err := range everything(t.Context(), s, "acc_b", "/tmp") {
		if !errs.HasCode(err, "vm_not_found") {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if err := s.CloudInitLog(t.Context(), "acc_b", vmID, -1, false, io.Discard); !errs.HasCode(err, "vm_not_found") {
		t.Errorf("cloud-init's log: %v", err)
	}
}

func TestTheRootStays(t *testing.T) {
	s, dir := open(t)
	put(t, dir, "etc/passwd", "root")
	for _, path := range []string{"/", "//", "/etc/..", "/./"} {
		err := s.Remove(t.Context(), owner, vmID, path, true)
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("removing %s: %v", path, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/passwd")); err != nil {
		t.Error(err)
	}
}

// TestAnyNameIsTaken writes, finds, moves and removes files of odd names.
func TestAnyNameIsTaken(t *testing.T) {
	s, dir := open(t)
	ctx := t.Context()
	for _, name := range []string{"/a b", "/ü+%41", "/\xff\xfe", "/line\nfeed", "/-rf", "/" + strings.Repeat("n", 250)} {
		if _, err := s.Write(ctx, owner, vmID, file.WriteSpec{Path: name}, strings.NewReader(name)); err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if _, err := s.Rename(ctx, owner, vmID, name, name+".b"); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		_, content, err := s.Read(ctx, owner, vmID, file.ReadSpec{Path: name + ".b", Length: -1})
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(content); err != nil || string(got) != name {
			t.Errorf("%q holds %q, %v", name, got, err)
		}
		_ = content.Close()
		if err := s.Remove(ctx, owner, vmID, name+".b", false); err != nil {
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
		_, err := s.Write(t.Context(), owner, vmID, file.WriteSpec{Path: "/f", Mode: &mode, Owner: &owner_}, strings.NewReader(""))
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

// TestWhoWakes puts the VM to sleep before each call.
func TestWhoWakes(t *testing.T) {
	guest, err := filetest.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = guest.Close() })
	host := &oneGuest{Guest: guest}
	s := file.New(host)
	host.asleep.Store(true)
	for verb, err := range everything(t.Context(), s, owner, "not absolute") {
		if !errs.Is(err, errs.Invalid) || !host.asleep.Load() {
			t.Errorf("%s: %v, and it sleeps on: %v", verb, err, host.asleep.Load())
		}
	}
	if err := s.CloudInitLog(t.Context(), owner, vmID, -1, false, io.Discard); !errs.HasCode(err, "vm_not_running") {
		t.Errorf("cloud-init's log: %v", err)
	}
	if _, err := s.Stat(t.Context(), owner, vmID, "/"); err != nil || host.asleep.Load() {
		t.Errorf("stat: %v, and it sleeps on: %v", err, host.asleep.Load())
	}
}

func TestCloudInitLog(t *testing.T) {
	s, dir := open(t)
	read := func(lines int) (string, error) {
		var out bytes.Buffer
		err := s.CloudInitLog(t.Context(), owner, vmID, lines, false, &out)
		return out.String(), err
	}
	if _, err := read(-1); !errs.HasCode(err, "cloud_init_log_not_found") || !errs.Is(err, errs.NotFound) {
		t.Errorf("without cloud-init: %v", err)
	}
	put(t, dir, "var/log/cloud-init.log", "began\n")
	if got, err := read(-1); err != nil || got != "began\n" {
		t.Errorf("its own account alone: %q, %v", got, err)
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
	err := s.Watch(ctx, owner, vmID, "/in", true, func() { put(t, dir, "in/sub/new", "y") }, func(c file.Change) error {
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
