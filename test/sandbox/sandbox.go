// Package sandbox gives a program that runs real guests a machine of its own:
// namespaces for processes, mounts and the network, in which it is root, and in
// which nothing survives it. The host's interfaces are never touched.
//
// Inside, a second network namespace plays the internet, on addresses from the
// ranges for documentation; Debian's mirrors can be reached through [ProxyAddr]
// only. The package also starts hatchd there. It is for test/e2e and test/bench,
// and needs root. Start at [Run] and [RunTests].
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
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ProxyAddr is the HTTP proxy in the sandbox that leads to Debian's mirrors.
const ProxyAddr = "127.0.0.1:3142"

// The addresses of the sandbox and of its internet, and some that guests must
// not reach although something answers there.
const (
	UplinkAddr    = "198.51.100.1" // the sandbox's
	InternetAddr  = "203.0.113.2"
	NeighbourAddr = "198.51.100.2" // on the sandbox's own network; its default route
	MetadataAddr  = "169.254.169.254"
	PrivateAddr   = "10.77.0.1"
)

// A run has three stages, each a child of the one before it.
const (
	stageVariable = "HATCH_SANDBOX_STAGE"
	stageInit     = "init"
	stageInside   = "inside"
)

// Run calls inside in a sandbox and returns its exit code. To do so the program
// starts itself again: Run must come first in its main function, and code before
// it runs three times.
func Run(inside func() int) int {
	var code int
	var err error
	switch os.Getenv(stageVariable) {
	case "":
		code, err = enter(&exec.Cmd{Args: os.Args, Stdout: os.Stdout, Stderr: os.Stderr})
	case stageInit:
		code, err = runInit()
	case stageInside:
		if err = makeNetwork(); err == nil {
			code = inside()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	return code
}

// enter runs this program as child, in new namespaces for processes, mounts and
// the network, and opens a way from there to Debian's mirrors. When the child
// ends, the kernel ends every process in its namespace.
func enter(child *exec.Cmd) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("it makes namespaces and network devices: run it as root")
	}
	child.Path = "/proc/self/exe"
	child.Env = append(os.Environ(), append(child.Env, stageVariable+"="+stageInit)...)
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The child waits for the end of this pipe, until the proxy listens.
	ready, starting, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	child.ExtraFiles = []*os.File{ready}
	runtime.LockOSThread() // Pdeathsig is sent when this thread ends
	defer runtime.UnlockOSThread()
	err = child.Start()
	_ = ready.Close()
	if err != nil {
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
	_ = starting.Close()
	err = child.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(1, exit.ExitCode()), nil
	}
	return 0, err
}

// runInit is process 1 of the sandbox: it also waits for orphans, such as VMMs
// whose hatchd was killed.
func runInit() (int, error) {
	starting := os.NewFile(3, "starting")
	if _, err := io.Copy(io.Discard, starting); err != nil {
		return 1, err
	}
	_ = starting.Close()
	if err := makeMounts(); err != nil {
		return 1, err
	}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, stageVariable+"=") })
	program, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env: append(env, stageVariable+"="+stageInside), Files: []uintptr{0, 1, 2},
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

// makeMounts parts the mounts from the host's, and mounts a /proc of the sandbox's
// processes and an empty /run. Then the mounts are shared, as systemd has them on a
// host: what is unmounted in one namespace is unmounted in those made from it.
func makeMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("cannot mount /run: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("cannot make the mounts shared: %w", err)
	}
	return nil
}

// makeNetwork makes the sandbox's network: loopback, and a link to a second
// namespace that plays the internet.
func makeNetwork() error {
	resolver := "/run/resolv.conf"
	if err := os.WriteFile(resolver, []byte("nameserver "+InternetAddr+"\n"), 0o644); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err == nil {
		err = unix.Mount(resolver, target, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("cannot replace /etc/resolv.conf in the sandbox: %w", err)
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
