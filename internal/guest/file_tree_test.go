package guest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// makeTree creates a tree with every kind of entry that an archive may have.
func makeTree(t *testing.T, root string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(root, "dir/below"), 0o755))
	for i, name := range names {
		must(os.WriteFile(filepath.Join(root, "dir", name), []byte(strings.Repeat("x", i*1000)), 0o644))
	}
	long := filepath.Join(root, strings.Repeat("d", 200), strings.Repeat("e", 200))
	must(os.MkdirAll(long, 0o700))
	must(os.WriteFile(filepath.Join(long, "deep"), []byte("deep"), 0o600))
	must(os.WriteFile(filepath.Join(root, "setuid"), []byte("#!"), 0o755))
	must(os.Chmod(filepath.Join(root, "setuid"), 0o755|os.ModeSetuid))
	must(os.Chmod(filepath.Join(root, "dir/below"), 0o777|os.ModeSticky))
	must(os.Link(filepath.Join(root, "setuid"), filepath.Join(root, "zlink")))
	must(os.Symlink("/nowhere/to/be\xfffound", filepath.Join(root, "dangling")))
	must(os.Symlink("dir", filepath.Join(root, "inside")))
	must(syscall.Mkfifo(filepath.Join(root, "pipe"), 0o644))
	must(os.WriteFile(filepath.Join(root, "holes"), nil, 0o644))
	must(os.Truncate(filepath.Join(root, "holes"), 20<<20))
	if os.Getuid() == 0 {
		must(os.Lchown(filepath.Join(root, "dangling"), 3, 4))
		must(os.Lchown(filepath.Join(root, "holes"), 1<<31, 5))
	}
	at := time.Unix(981173106, 123456789)
	must(os.Chtimes(filepath.Join(root, "holes"), at, at))
	must(os.Chtimes(filepath.Join(root, "dir"), at, at))
}

// describeTree returns the attributes of each file below root that an archive stores.
func describeTree(t *testing.T, root string) map[string]string {
	t.Helper()
	all, firsts := map[string]string{}, map[uint64]string{}
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
		st := info.Sys().(*syscall.Stat_t)
		if firsts[st.Ino] == "" {
			firsts[st.Ino] = name
		}
		text := fmt.Sprintf("%v %d:%d same as %q", info.Mode(), st.Uid, st.Gid, firsts[st.Ino])
		if !info.IsDir() {
			text += fmt.Sprintf(" %d bytes", info.Size())
		}
		if info.Mode()&os.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " to " + target
		}
		all[name] = text + info.ModTime().String()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// blocks returns the disk space of a file, in bytes.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
