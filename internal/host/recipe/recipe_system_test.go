//go:build system

package recipe

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMinimalIsTheSameEachTime builds in two directories and compares.
func TestMinimalIsTheSameEachTime(t *testing.T) {
	var digests []string
	for range 2 {
		r, err := New(filepath.Join(t.TempDir(), "images"), nil)
		if err != nil {
			t.Fatal(err)
		}
		var progress strings.Builder
		built, err := r.Build(t.Context(), "minimal", false, &progress)
		if err != nil {
			t.Fatalf("%v\n%s", err, progress.String())
		}
		if out, err := exec.Command("e2fsck", "-fn", built.Rootfs).CombinedOutput(); err != nil {
			t.Errorf("the file system is not clean: %v\n%s", err, out)
		}
		for _, path := range []string{built.Kernel, filepath.Join(built.Modules, "modules.dep")} {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
		digest, err := fileDigest(built.Rootfs)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest)
		again, err := r.Build(t.Context(), "minimal", false, &progress)
		if err != nil || !again.Cached || again.Rootfs != built.Rootfs {
			t.Errorf("it is not from the cache: %+v, %v", again, err)
		}
		left, err := filepath.Glob(filepath.Join(r.dir, buildPrefix+"*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("two builds differ: %v", digests)
	}
}
