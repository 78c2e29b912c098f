// Package probe builds the guest that a Firecracker runs in tests on hosts
// without hardware virtualisation: a program of a few KiB without an operating
// system, in guest/, that obeys the conformance suite's lines. It also says
// where the tests' Firecracker is.
//
// It is for tests that carry the build tag system. Start at [Build], and to
// see what a VMM gives its guest, at guest/probe.c.
package probe

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
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
	source := filepath.Join(repository(t), "internal", "vmm", "vmmtest", "probe", "guest")
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
	return asset(t, "HATCH_TEST_FIRECRACKER", "firecracker")
}

// Jailer returns the path of the tests' jailer and fails the test without one.
func Jailer(t testing.TB) string {
	t.Helper()
	return asset(t, "HATCH_TEST_JAILER", "jailer")
}

// asset returns the path in the variable, or else the file that was fetched.
func asset(t testing.TB, variable, name string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join(repository(t), ".cache", "test", "firecracker", name)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing (%v); fetch it with: make test-assets", name, err)
	}
	return path
}

func repository(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("cannot tell where the source is")
	}
	return filepath.Join(filepath.Dir(file), "..", "..", "..", "..")
}
