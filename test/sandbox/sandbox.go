// Package sandbox gives a program that runs real guests a machine of its own:
// namespaces for processes, mounts and the network, in which it is root, and in
// which nothing survives it. The host's interfaces are never touched.
//
// Inside, a second network namespace plays the internet, on addresses from the
// ranges for documentation; Debian's mirrors can be reached through [ProxyAddr]
// only. It also starts hatchd there. It is for test/e2e and test/bench, and
// needs root. Start at [Run].
package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ProxyAddr is where packages for building images can be had.
const ProxyAddr = "127.0.0.1:3142"

// The addresses of the sandbox and of its internet, and some that guests must
// not reach although something can answer there.
const (
	UplinkAddr    = "198.51.100.1" // ours
	InternetAddr  = "203.0.113.2"
	NeighbourAddr = "198.51.100.2" // on the host's own network; the way to all others
	MetadataAddr  = "169.254.169.254"
	PrivateAddr   = "10.77.0.1"
)

// A run has three stages, each a child of the one before it.
const (
	stageVariable = "HATCH_SANDBOX_STAGE"
	stageInit     = "init"
	stageInside   = "inside"
)

// Run calls inside in a sandbox and returns its exit code. The program starts
// itself anew for that: Run must come first in its main function, and what is
// before it happens three times.
func Run(inside func() int) int {
	var code int
	var err error
	switch os.Getenv(stageVariable) {
	case "":
		code, err = enter()
	case stageInit:
		code, err = beInit()
	case stageInside:
		if err = network(); err == nil {
			code = inside()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	return code
}

// enter runs the program in a child with namespaces of its own for
// processes, mounts and the network, and offers it a way to Debian's mirrors.
// When the child ends, the kernel ends everything in it.
func enter() (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("namespaces and network devices are made here: run it as root")
	}
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Env = append(os.Environ(), stageVariable+"="+stageInit)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The child waits on this pipe until the proxy is there.
	ready, tell, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	child.ExtraFiles = []*os.File{ready}
	runtime.LockOSThread() // Pdeathsig is the thread's
	if err := child.Start(); err != nil {
		return 1, fmt.Errorf("cannot make namespaces: %w", err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		_ = child.Process.Kill()
	}()
	if err := offerProxy(child.Process.Pid); err != nil {
		_ = child.Process.Kill()
		return 1, errors.Join(err, child.Wait())
	}
	_ = tell.Close()
	err = child.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	}
	return 0, err
}

// beInit is process 1 of the sandbox: it reaps what nobody waits for, such as
// VMMs whose hatchd was killed.
func beInit() (int, error) {
	gate := os.NewFile(3, "gate")
	if _, err := io.Copy(io.Discard, gate); err != nil {
		return 1, err
	}
	_ = gate.Close()
	if err := mounts(); err != nil {
		return 1, err
	}
	env := append(withoutStage(os.Environ()), stageVariable+"="+stageInside)
	program, err := syscall.ForkExec("/proc/self/exe", append([]string{os.Args[0]}, os.Args[1:]...), &syscall.ProcAttr{
		Env: env, Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 1, fmt.Errorf("cannot start the program: %w", err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("cannot wait for the program: %w", err)
		case pid == program && status.Exited():
			return status.ExitStatus(), nil
		case pid == program:
			return 1, fmt.Errorf("the program ended by signal %v", status.Signal())
		}
	}
}

func withoutStage(env []string) []string {
	var kept []string
	for _, e := range env {
		if !strings.HasPrefix(e, stageVariable+"=") {
			kept = append(kept, e)
		}
	}
	return kept
}

// mounts makes this mount namespace ours: a /proc of our processes, and a /run
// where nobody else's files are.
func mounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("cannot mount /run: %w", err)
	}
	return nil
}

// network makes the network of the sandbox: loopback, and a link to a
// second namespace that plays the internet.
func network() error {
	resolver := "/run/resolv.conf"
	if err := os.WriteFile(resolver, []byte("nameserver "+InternetAddr+"\n"), 0o644); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err == nil {
		err = unix.Mount(resolver, target, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("cannot give the sandbox a resolver of its own: %w", err)
	}
	for _, line := range []string{
		"link set lo up",
		"netns add internet",
		"link add uplink type veth peer name uplink netns internet",
		"addr add " + UplinkAddr + "/24 dev uplink",
		"link set uplink up",
		"route add default via " + NeighbourAddr,
		"-n internet link set lo up",
		"-n internet addr add " + NeighbourAddr + "/24 dev uplink",
		"-n internet addr add " + InternetAddr + "/32 dev lo",
		"-n internet addr add " + MetadataAddr + "/32 dev lo",
		"-n internet addr add " + PrivateAddr + "/32 dev lo",
		"-n internet link set uplink up",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("cannot make the network: ip %s: %w: %s", line, err, out)
		}
	}
	return nil
}
