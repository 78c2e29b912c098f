// Package probe builds the guest of Firecracker in tests on hosts without hardware
// virtualisation: a program of a few KiB without an operating system, in guest/. It
// executes the conformance suite's commands, and its agent is enough for hatchd. The
// package also finds the tests' Firecracker.
//
// It is for tests with the build tag system. Start at [Build], and for the guest at
// guest/probe.c.
package probe

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hatchvm/hatch/internal/vmm/vmmtest/testguest"
)

// flags make gcc use no C library, no relocation at load time, and only the integer
// instructions of the processor.
var flags = []string{
	"-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie",
	"-mgeneral-regs-only", "-mno-red-zone", "-fcf-protection=none", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns",
	"-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments",
}

// Build compiles the guest in a directory of the test and returns its path: an ELF file
// that a VMM boots like a kernel.
func Build(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "probe")
	if err := Compile(testguest.Repository(t), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Compile compiles the guest from its source in a checkout.
func Compile(repository, to string) error {
	source := filepath.Join(repository, "internal", "vmm", "vmmtest", "probe", "guest")
	files, err := filepath.Glob(filepath.Join(source, "*.c"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("cannot find the probe's source in %s: %w", source, err)
	}
	args := append(slices.Clone(flags), "-Wl,-T,"+filepath.Join(source, "probe.ld"), "-o", to)
	if out, err := exec.Command("gcc", append(args, files...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build the probe: %w\n%s", err, out)
	}
	return nil
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
