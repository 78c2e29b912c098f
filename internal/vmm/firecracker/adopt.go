//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/process"
)

// Adopt implements vmm.Driver. An empty h.Version, as List gives it, matches every
// version. Firecracker's file may have had another name when the process was started:
// the file names of releases have the version in them.
func (d *Driver) Adopt(ctx context.Context, h vmm.Handle) (vmm.Machine, error) {
	root := rootOf(h.Dir, h.Exe, h.ID)
	if h.Driver != Name || !isID(h.ID) || h.Socket != filepath.Join(root, apiSocket) || h.Exe != d.exeOf(root) {
		return nil, process.Gone(h.ID)
	}
	proc, err := process.Open(h, d.cgroups)
	if err != nil {
		return nil, err
	}
	if !d.hasRoot(h.PID, root) {
		return nil, errors.Join(process.Gone(h.ID), proc.Close())
	}
	m, err := d.newMachine(h, root, proc)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, process.AdoptTimeout)
	defer cancel()
	if err = m.awaitAPI(ctx); err != nil { // it may just have been started
		err = m.explain(err)
	} else {
		err = m.checkIdentity(ctx)
	}
	if err != nil && !vmm.IsSilent(err) { // Health and Save check the identity of a silent one
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// checkIdentity checks that the process of the handle serves the API socket. It
// compares Firecracker's version with the handle's, or sets it there if it is empty.
func (m *machine) checkIdentity(ctx context.Context) error {
	conn, err := dialWithin(ctx, m.api.root, apiSocket)
	if err != nil {
		return m.explain(err)
	}
	pid, err := peerPID(conn)
	if err = errors.Join(err, conn.Close()); err != nil {
		return err
	}
	if pid != m.Handle().PID {
		return process.Gone(m.Handle().ID)
	}
	i, err := m.api.instance(ctx)
	if err != nil {
		return m.explain(err)
	}
	if m.Handle().Version != "" && m.Handle().Version != i.Version {
		return process.Gone(m.Handle().ID)
	}
	v, err := parseVersion(i.Version)
	if err != nil {
		return err
	}
	if i.State == stateNew { // the daemon that started it ended before it configured the machine
		return errors.Join(process.Gone(m.Handle().ID), m.Kill(ctx))
	}
	h := m.Handle()
	h.Version = i.Version
	m.SetHandle(h)
	m.version.Store(&v)
	return nil
}

// peerPID returns the process that listens at the other end of a connection.
func peerPID(conn net.Conn) (pid int, err error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("the connection is not to a Unix socket")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// removeLeftovers cleans the run directories below root of machines that ended while
// no daemon ran.
func (d *Driver) removeLeftovers(root string) error {
	jails, err := filepath.Glob(filepath.Join(root, "*", jailFolder))
	if err != nil {
		return err
	}
	var failures []error
	for _, path := range jails {
		dir := filepath.Dir(path)
		if !d.reserve(dir) {
			continue // a start is in progress
		}
		roots := rootsIn(dir)
		if !slices.ContainsFunc(roots, d.isInUse) {
			for _, at := range roots {
				d.cgroups.Forget(idOfRoot(at))
			}
			failures = append(failures, removeTAP(dir), cleanRunDir(dir))
		}
		d.release(dir)
	}
	return errors.Join(failures...)
}

// quietScans is how many scans in a row must find no pending process: without cgroups
// a process cannot be recognised at the moment when it executes another program.
const quietScans = 10

// awaitJailers waits for processes that an earlier daemon started and that have not
// executed Firecracker yet, which takes some 10 ms. done is false if one still has not
// after limit, so that it does not delay other machines.
func (d *Driver) awaitJailers(ctx context.Context, root string, limit time.Duration) (done bool, err error) {
	if d.unjailed {
		return true, nil
	}
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for quiet := 0; quiet < quietScans; quiet++ {
		jailers, err := jail.FindFile(d.jailer, func(args []string) bool { return d.isOrphaned(args, root) })
		if err != nil {
			return false, err
		}
		pending, err := d.isAnyPending(root)
		if err != nil {
			return false, err
		}
		if pending || len(jailers) > 0 {
			quiet = 0
		}
		select {
		case <-ticker.C:
		case <-timeout.C:
			return false, nil
		case <-ctx.Done():
			return false, fmt.Errorf("a jailer does not finish: %w", ctx.Err())
		}
	}
	return true, nil
}

// isAnyPending reports whether any process in the cgroup of a machine below root is
// not Firecracker: it has not executed it yet, or is ending. It leaves out the starts
// of this daemon, and relies on nothing that a compromised Firecracker can change.
func (d *Driver) isAnyPending(root string) (bool, error) {
	for _, at := range rootsBelow(root) {
		pids, err := d.cgroups.Members(idOfRoot(at))
		if err != nil {
			return false, err
		}
		pending := func(pid int) bool {
			id, err := jail.Identify(pid)
			return err != nil || id.Exe != d.exeOf(at) || !d.hasRoot(pid, at)
		}
		if !d.isStarting(dirOfRoot(at)) && slices.ContainsFunc(pids, pending) {
			return true, nil
		}
	}
	return false, nil
}

// isOrphaned reports whether a jailer with these arguments was started for a machine
// below root, and not by this daemon.
func (d *Driver) isOrphaned(args []string, root string) bool {
	at := slices.Index(args, "--chroot-base-dir")
	if at < 0 || at+1 >= len(args) {
		return false
	}
	dir := filepath.Dir(args[at+1])
	return filepath.Dir(dir) == filepath.Clean(root) && !d.isStarting(dir)
}

func (d *Driver) isStarting(dir string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.starting[dir]
}

// hasRoot reports whether the process has this root directory, which only a jailer
// run by root can have given it. Without a jailer it is the working directory.
func (d *Driver) hasRoot(pid int, root string) bool {
	name := "root"
	if d.unjailed {
		name = "cwd"
	}
	theirs, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), name))
	if err != nil {
		return false
	}
	ours, err := os.Stat(root)
	return err == nil && os.SameFile(theirs, ours)
}

// runsIn reports whether a Firecracker of ours has this root directory.
func (d *Driver) runsIn(root string) bool {
	if _, err := os.Stat(root); err != nil {
		return false
	}
	found, err := jail.Runners(d.exeOf(root))
	if err != nil {
		return true // unknown
	}
	return slices.ContainsFunc(found, func(id jail.Identity) bool { return d.hasRoot(id.PID, root) })
}

// isInUse reports whether a Firecracker of ours has this root directory, or any
// process is in the cgroup of its machine.
func (d *Driver) isInUse(root string) bool {
	pids, err := d.cgroups.Members(idOfRoot(root))
	return err != nil || len(pids) > 0 || d.runsIn(root)
}

// List implements vmm.Driver. A process is ours if it runs Firecracker in a root
// directory that belongs to a run directory directly below root. List also cleans
// these run directories of machines that ended while no daemon ran.
func (d *Driver) List(ctx context.Context, root string) ([]vmm.Handle, error) {
	done, err := d.awaitJailers(ctx, root, commandTimeout)
	if err != nil {
		return nil, err
	}
	if !done {
		d.log.Warn("a process of a machine does not execute Firecracker; its files are kept", "root", root)
	}
	ours, err := d.machines(root)
	if err != nil || !done {
		return ours, err
	}
	if err := d.removeLeftovers(root); err != nil {
		d.log.Warn("cannot clean up after machines that have ended", logkey.Error, err)
	}
	return ours, nil
}

// machines returns the machines whose run directories are directly below root.
func (d *Driver) machines(root string) (ours []vmm.Handle, err error) {
	running := map[string][]jail.Identity{}
	for _, at := range rootsBelow(root) {
		exe := d.exeOf(at)
		if _, known := running[exe]; !known {
			if running[exe], err = jail.Runners(exe); err != nil {
				return nil, err
			}
		}
		for _, p := range running[exe] {
			if id := idOfRoot(at); isID(id) && d.hasRoot(p.PID, at) {
				ours = append(ours, vmm.Handle{
					Driver: Name, ID: id, PID: p.PID, StartTime: p.StartTime, BootID: p.BootID,
					Exe: p.Exe, Dir: dirOfRoot(at), Socket: filepath.Join(at, apiSocket),
				})
			}
		}
	}
	return ours, nil
}
