//go:build linux

// Package nettest lets tests send real packets without touching the host: a test
// binary runs in a network namespace of its own, and a guest is another namespace
// whose frames are copied from and to a TAP, as a VMM does.
//
// It is for tests only, and needs root. Start at [Main] and [NewGuest].
package nettest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
)

// inside is set in the process that runs in the new namespace.
const inside = "HATCH_TEST_IN_NETNS"

// Main runs the tests of a package in a new network namespace, by starting the test
// binary again, and fails when goroutines are left. It does not return.
func Main(m *testing.M) {
	os.Exit(run(m)) //nolint:forbidigo // TestMain calls it
}

func run(m *testing.M) int {
	if os.Getenv(inside) == "" {
		return runInside()
	}
	if err := up("lo"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	// The death signal is sent when the thread that starts the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "cannot enter a network namespace (these tests need root):", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// Namespace is another network namespace than the test's.
type Namespace struct {
	handle netns.NsHandle
}

// NewNamespace makes an empty namespace with its loopback up.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	ns := &Namespace{}
	err := onThread(func() error {
		handle, err := netns.New() // and enters it
		if err != nil {
			return err
		}
		ns.handle = handle
		return up("lo")
	})
	if err != nil {
		t.Fatalf("cannot make a network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.handle.Close() })
	return ns
}

// Do runs f in the namespace. Sockets that f opens stay in it.
func (ns *Namespace) Do(t testing.TB, f func() error) {
	t.Helper()
	if err := ns.Try(f); err != nil {
		t.Fatal(err)
	}
}

// Try runs f in the namespace and returns its error.
func (ns *Namespace) Try(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return err
		}
		return f()
	})
}

// onThread runs f on a thread that ends afterwards, and with it the thread's stay
// in the namespace that f enters.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		result <- f()
	}()
	return <-result
}

// Wire connects the test's namespace and ns by a pair of interfaces with addresses in
// CIDR form.
func Wire(t testing.TB, ns *Namespace, here, hereCIDR, there, thereCIDR string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = here
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: there, PeerNamespace: netlink.NsFd(ns.handle)}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatalf("cannot make a pair of interfaces: %v", err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(pair) })
	if err := address(here, hereCIDR); err != nil {
		t.Fatal(err)
	}
	ns.Do(t, func() error { return address(there, thereCIDR) })
}

// address sets an interface's address, and brings it up.
func address(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cannot find %s: %w", name, err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("cannot give %s the address %s: %w", name, cidr, err)
	}
	return up(name)
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cannot find %s: %w", name, err)
	}
	return netlink.LinkSetUp(link)
}
