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

// Without hardware virtualisation Debian's kernel does not boot here, but Firecracker
// loads and starts it: the kernel prints its first line.
func TestADistributionsKernelIsStarted(t *testing.T) {
	l := newLab(t, false)
	d := l.driver(t)
	s := l.spec(t)
	s.Cmdline = "console=ttyS0 earlyprintk=serial,ttyS0,115200"
	s.Kernel, s.Initramfs = testguest.Kernel(t), testguest.Build(t)
	began := time.Now()
	vmlinux, err := d.kernels.vmlinux(s.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("unpacked in %v", time.Since(began).Round(time.Millisecond))
	f, err := elf.Open(vmlinux)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(vmlinux); err != nil || st.Mode().Perm() != 0o444 {
		t.Errorf("the uncompressed kernel is %+v, %v", st, err)
	}
	began = time.Now()
	if again, err := d.kernels.vmlinux(s.Kernel); err != nil || again != vmlinux {
		t.Errorf("the second time it is %s, %v; want %s", again, err, vmlinux)
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
