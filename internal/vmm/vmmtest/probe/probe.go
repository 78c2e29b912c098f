// Package probe builds the guest that a Firecracker runs in tests on hosts
// without hardware virtualisation: a program of a few KiB without an operating
// system, in guest/, that obeys the conformance suite's lines, and that hatchd
// meets as it meets an agent. It also says where the tests' Firecracker is.
//
// It is for tests that carry the build tag system. Start at [Build], and to
// see what a VMM gives its guest, at guest/probe.c.
package probe

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hatchvm/hatch/internal/vmm/vmmtest/testguest"
)

// flags make gcc leave out what needs an operating system (a C library, a place
// chosen at load time) or more of a processor than its integer instructions.
var flags = []string{
	"-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie",
	"-mgeneral-regs-only", "-mno-red-zone", "-fcf-protection=none", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns",
	"-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments",
}

// Build makes the guest in a directory of the test and returns its path: an
// ELF program that is started as a kernel is.
func Build(t testing.TB) string {
	t.Helper()
	source := filepath.Join(testguest.Repository(t), "internal", "vmm", "vmmtest", "probe", "guest")
	files, err := filepath.Glob(filepath.Join(source, "*.c"))
	if err != nil || len(files) == 0 {
		t.Fatalf("cannot find the probe's source: %v", err)
	}
	path := filepath.Join(t.TempDir(), "probe")
	args := append(append([]string{}, flags...), "-Wl,-T,"+filepath.Join(source, "probe.ld"), "-o", path)
	if out, err := exec.Command("gcc", append(args, files...)...).CombinedOutput(); err != nil {
		t.Fatalf("cannot build the probe: %v\n%s", err, out)
	}
	return path
}

// Firecracker returns the path of the tests' Firecracker and fails the test
// without one.
func Firecracker(t testing.TB) string {
	t.Helper()
	return testguest.Asset(t, "HATCH_TEST_FIRECRACKER", "firecracker/firecracker")
}

// Jailer returns the path of the tests' jailer and fails the test without one.
func Jailer(t testing.TB) string {
	t.Helper()
	return testguest.Asset(t, "HATCH_TEST_JAILER", "firecracker/jailer")
}
