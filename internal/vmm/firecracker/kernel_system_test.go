//go:build linux && amd64 && system

package firecracker

import (
	"debug/elf"
	"os"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest/testguest"
)

// Debian's kernel cannot get far here without hardware, but Firecracker takes it
// and lets it begin: its first line comes.
func TestADistributionsKernelIsTaken(t *testing.T) {
	l := newLab(t, false)
	d := l.driver(t)
	s := l.spec(t)
	s.Cmdline = "console=ttyS0 earlyprintk=serial,ttyS0,115200"
	s.Kernel, s.Initramfs = testguest.Kernel(t), testguest.Build(t)
	began := time.Now()
	bare, err := d.kernels.bare(s.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("unpacked in %v", time.Since(began).Round(time.Millisecond))
	f, err := elf.Open(bare)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(bare); err != nil || st.Mode().Perm() != 0o444 {
		t.Errorf("the bare kernel is %+v, %v", st, err)
	}
	began = time.Now()
	if again, err := d.kernels.bare(s.Kernel); err != nil || again != bare {
		t.Errorf("the second time it is %s, %v", again, err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("the second time took %v", took)
	}
	m, err := d.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	vmmtest.DialConsole(t, m).Expect("[    0.000000] Linux version ")
	if err := m.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
