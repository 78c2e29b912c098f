package disk

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// TestManyFirstCreatesShareOneTemplate makes VMs of a size that has no template
// yet, all at once.
func TestManyFirstCreatesShareOneTemplate(t *testing.T) {
	f := newFiles(t)
	var all sync.WaitGroup
	for i := range 12 {
		v := someVM()
		v.ID = fmt.Sprintf("vm_many%d", i)
		v.DiskMiB += 64 * (i % 2) // two sizes
		all.Go(func() {
			if err := f.Provision(t.Context(), v); err != nil {
				t.Errorf("%s: %v", v.ID, err)
			}
		})
	}
	all.Wait()
	templates, err := os.ReadDir(f.templates)
	if err != nil || len(templates) != 2 {
		t.Errorf("got the templates %v, %v; want one for each size", templates, err)
	}
	for i := range 12 {
		disk := filepath.Join(f.Dir(fmt.Sprintf("vm_many%d", i)), diskName)
		if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
			t.Errorf("disk %d is not clean: %v\n%s", i, err, out)
		}
	}
}
