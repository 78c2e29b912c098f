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
	"github.com/hatchvm/hatch/internal/vmm"
)

// Adopt implements vmm.Driver. An empty h.Version, as List gives it, matches
// every version. The file of Firecracker may have had another name when the
// process was started: a release's has its version in it.
func (d *Driver) Adopt(ctx context.Context, h vmm.Handle) (vmm.Machine, error) {
	root := rootOf(h.Dir, h.Exe, h.ID)
	if h.Driver != Name || !isID(h.ID) || h.Socket != filepath.Join(root, apiSocket) || h.Exe != d.exeOf(root) {
		return nil, errGone(h.ID)
	}
	proc, err := jail.Open(jail.Identity{PID: h.PID, StartTime: h.StartTime, BootID: h.BootID, Exe: h.Exe}, h.ID)
	if errors.Is(err, jail.ErrGone) {
		return nil, errGone(h.ID)
	}
	if err != nil {
		return nil, err
	}
	if !d.livesIn(h.PID, root) {
		return nil, errors.Join(errGone(h.ID), proc.Close())
	}
	m, err := d.newMachine(h, root, proc)
	if err != nil {
		return nil, err
	}
	if err := m.compare(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// compare checks that it is our process that serves the socket, and compares or
// notes its version.
func (m *machine) compare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	if err := m.awaitAPI(ctx); err != nil { // it may just have been started
		return m.explain(err)
	}
	conn, err := dialWithin(ctx, m.api.root, apiSocket)
	if err != nil {
		return m.explain(err)
	}
	pid, err := listener(conn)
	if err = errors.Join(err, conn.Close()); err != nil {
		return err
	}
	if pid != m.handle.PID {
		return errGone(m.handle.ID)
	}
	i, err := m.api.instance(ctx)
	if err != nil {
		return m.explain(err)
	}
	if m.handle.Version != "" && m.handle.Version != i.Version {
		return errGone(m.handle.ID)
	}
	if i.State == stateNew { // a daemon ended before it told it what to run
		return errors.Join(errGone(m.handle.ID), m.Kill(ctx))
	}
	m.handle.Version = i.Version
	m.version, err = parseVersion(i.Version)
	return err
}

// listener returns the process that listens at the other end of a connection.
func listener(conn net.Conn) (pid int, err error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("this is no unix socket")
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

// tidy removes what machines that ended while nobody watched have left in the
// run directories below root.
func (d *Driver) tidy(root string) error {
	jails, err := filepath.Glob(filepath.Join(root, "*", jailFolder))
	if err != nil {
		return err
	}
	var faults []error
	for _, path := range jails {
		dir := filepath.Dir(path)
		if !d.reserve(dir) {
			continue // a start is under way
		}
		roots := rootsIn(dir)
		if !slices.ContainsFunc(roots, d.isInUse) {
			for _, at := range roots {
				jail.Forget(idOfRoot(at))
			}
			faults = append(faults, endTAP(dir), clearOut(dir))
		}
		d.release(dir)
	}
	return errors.Join(faults...)
}

// quietScans is how often nobody must be seen in a row: where there are no cgroups
// to look into, nobody can tell what a process is while it becomes another program.
const quietScans = 10

// awaitJailers waits for processes that an earlier daemon started and that have
// not become Firecracker yet, which takes them some 10 ms. settled says whether
// all have: one that does not shall not hold up the machines of others for longer
// than limit.
func (d *Driver) awaitJailers(ctx context.Context, root string, limit time.Duration) (settled bool, err error) {
	if d.unjailed {
		return true, nil
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for quiet := 0; quiet < quietScans; quiet++ {
		jailers, err := jail.FindFile(d.jailer, func(args []string) bool { return d.isOrphaned(args, root) })
		if err != nil {
			return false, err
		}
		becoming, err := d.isAnyBecoming(root)
		if err != nil {
			return false, err
		}
		if becoming || len(jailers) > 0 {
			quiet = 0
		}
		select {
		case <-again.C:
		case <-late.C:
			return false, nil
		case <-ctx.Done():
			return false, fmt.Errorf("a jailer does not come to an end: %w", ctx.Err())
		}
	}
	return true, nil
}

// isAnyBecoming reports whether a process was started for a run directory below
// root, not for a start of ours, and is no Firecracker yet.
func (d *Driver) isAnyBecoming(root string) (bool, error) {
	for _, at := range rootsBelow(root) {
		pids, err := jail.Members(idOfRoot(at))
		if err != nil {
			return false, err
		}
		becoming := func(pid int) bool { return d.isBecoming(pid, at) }
		if !d.isStarting(dirOfRoot(at)) && slices.ContainsFunc(pids, becoming) {
			return true, nil
		}
	}
	return false, nil
}

// isBecoming reports whether a process in the cgroup of that root directory's
// machine is no Firecracker yet, or none any more: it begins or ends. It goes by
// nothing that a Firecracker in a guest's hands can change.
func (d *Driver) isBecoming(pid int, root string) bool {
	id, err := jail.Identify(pid)
	return err != nil || id.Exe != d.exeOf(root) || !d.livesIn(pid, root)
}

// isOrphaned reports whether a jailer with these arguments works below root, and
// not for a start of ours.
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

// livesIn reports whether the process has this root directory, which only a
// jailer run by root can have given it. Without a jailer it is where it works.
func (d *Driver) livesIn(pid int, root string) bool {
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

// runsIn reports whether any Firecracker of ours lives in that directory.
func (d *Driver) runsIn(root string) bool {
	if _, err := os.Stat(root); err != nil {
		return false
	}
	found, err := jail.Runners(d.exeOf(root))
	if err != nil {
		return true // nobody knows
	}
	return slices.ContainsFunc(found, func(id jail.Identity) bool { return d.livesIn(id.PID, root) })
}

// isInUse is runsIn, and true as well while any process is where only one with that
// directory can be.
func (d *Driver) isInUse(root string) bool {
	pids, err := jail.Members(idOfRoot(root))
	return err != nil || len(pids) > 0 || d.runsIn(root)
}

// List implements vmm.Driver. A process is ours if it runs Firecracker in a root
// directory that belongs to a run directory directly below root. What is left
// there of machines that nobody saw end is removed.
func (d *Driver) List(ctx context.Context, root string) ([]vmm.Handle, error) {
	settled, err := d.awaitJailers(ctx, root, commandLimit)
	if err != nil {
		return nil, err
	}
	if !settled {
		d.log.Warn("a process started for a machine does not become Firecracker; nothing is removed that it may use", "root", root)
	}
	ours, err := d.machines(root)
	if err != nil || !settled {
		return ours, err
	}
	if err := d.tidy(root); err != nil {
		d.log.Warn("cannot remove what is left of machines that are gone", "err", err)
	}
	return ours, nil
}

// machines finds the process of each root directory in a run directory below root.
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
			if id := idOfRoot(at); isID(id) && d.livesIn(p.PID, at) {
				ours = append(ours, vmm.Handle{
					Driver: Name, ID: id, PID: p.PID, StartTime: p.StartTime, BootID: p.BootID,
					Exe: p.Exe, Dir: dirOfRoot(at), Socket: filepath.Join(at, apiSocket),
				})
			}
		}
	}
	return ours, nil
}
