//go:build system

package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// setAside replaces a file by a copy until restore is called.
func setAside(t *testing.T, path string) (restore func()) {
	t.Helper()
	aside := path + ".aside"
	rename(t, path, aside)
	if out, err := exec.Command("cp", "--preserve=all", "--sparse=always", aside, path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return func() { rename(t, aside, path) }
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// flipByte changes one bit outside of the file's holes.
func flipByte(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const within = 100 // bytes
	at, err := f.Seek(within, unix.SEEK_DATA)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func cutShort(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-1); err != nil {
		t.Fatal(err)
	}
}

// changeValue changes the value after a key in a manifest.
func changeValue(key string) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), key) {
			t.Fatalf("there is no %s: %v", key, err)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), key, key+"not ", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
