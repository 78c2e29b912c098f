//go:build linux && amd64

package firecracker

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestPruneKeepsTheKernelsThatWereUsedLast(t *testing.T) {
	k := &kernels{dir: t.TempDir()}
	begin := time.Now().Add(-time.Hour)
	var want []string
	for i := range maxKernels + 3 {
		name := fmt.Sprintf("%x.elf", (7*i)%16) // not in the order of the times
		path := filepath.Join(k.dir, name)
		at := begin.Add(time.Duration(i) * time.Second)
		if err := os.WriteFile(path, nil, 0o444); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		if i >= 3 {
			want = append(want, name)
		}
	}
	if err := os.WriteFile(filepath.Join(k.dir, unfinished+"1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.prune(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("kept are %v, want %v", got, want)
	}
}
