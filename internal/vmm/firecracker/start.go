//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

// startTimeout bounds a start, if its context does not end before.
const startTimeout = 30 * time.Second

// jailerCapabilities are the capabilities that the jailer uses until it changes to the
// process's user.
var jailerCapabilities = []uintptr{
	unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_MKNOD, unix.CAP_CHOWN, unix.CAP_FOWNER, unix.CAP_DAC_OVERRIDE,
	unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SYS_RESOURCE,
}

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, spec vmm.Spec) (vmm.Machine, error) {
	if spec.NIC != nil {
		defer func() { _ = spec.NIC.TAP.Close() }()
	}
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	return d.startMachine(ctx, spec, "")
}

// startMachine boots a machine, or wakes the one whose devices are in the file state.
func (d *Driver) startMachine(ctx context.Context, spec vmm.Spec, state string) (vmm.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !d.reserve(spec.Dir) {
		return nil, errs.New(errs.Conflict, "machine_starts", "another start of this VM is in progress")
	}
	defer d.release(spec.Dir)
	m, tap, err := d.launch(ctx, spec, state)
	if err != nil {
		return nil, err
	}
	a, closeConn := m.api.withKeepAlive()
	defer closeConn()
	if err = d.prepare(ctx, m, a, spec, state, tap); err == nil && state == "" {
		err = a.action(ctx, "InstanceStart")
	}
	if err != nil {
		return nil, m.Discard(err)
	}
	return m, nil
}

// prepare configures or loads the machine of a process that was just started. When it
// returns the guest may run: the process has access only to what it needs, and all
// limits are set.
func (d *Driver) prepare(ctx context.Context, m *machine, a *api, spec vmm.Spec, state, tap string) error {
	err := m.attach(ctx, d, a)
	switch {
	case err != nil:
		return err
	case state == "":
		err = configure(ctx, a, *m.version.Load(), spec, tap)
	default:
		err = m.load(ctx, a, spec, tap)
	}
	if err != nil {
		return err
	}
	if err := (&chroot{path: m.api.root}).seal(); err != nil {
		return fmt.Errorf("cannot seal the machine's root directory: %w", err)
	}
	d.notes.Log(d.log, m.Proc.Note())
	return nil
}

// reserve reserves dir for a start or for removeLeftovers. It returns false if dir is
// reserved already.
func (d *Driver) reserve(dir string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.starting[dir] {
		return false
	}
	d.starting[dir] = true
	return true
}

func (d *Driver) release(dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.starting, dir)
}

// launch starts a process without a machine.
func (d *Driver) launch(ctx context.Context, spec vmm.Spec, state string) (m *machine, tap string, err error) {
	if err := d.checkUnused(spec); err != nil {
		return nil, "", err
	}
	if err := errors.Join(removeTAP(spec.Dir), cleanRunDir(spec.Dir)); err != nil { // of a machine that ended while no daemon ran
		return nil, "", err
	}
	defer func() {
		if err != nil && m == nil {
			err = errors.Join(err, removeTAP(spec.Dir), cleanRunDir(spec.Dir))
		}
	}()
	if err := ignoreMissing(os.Remove(filepath.Join(spec.Dir, vmm.LogName))); err != nil {
		return nil, "", err
	}
	if state == "" {
		if spec.Kernel, err = d.kernels.vmlinux(spec.Kernel); err != nil {
			return nil, "", err
		}
	}
	root := chroot{path: d.root(spec.Dir, spec.ID), uid: spec.UID, gid: spec.GID}
	if err := root.populate(spec, state); err != nil {
		return nil, "", err
	}
	if spec.NIC != nil {
		tap, err = persistTAP(spec.NIC.TAP, spec.UID, spec.Dir)
		_ = spec.NIC.TAP.Close() // Firecracker cannot attach to a TAP that is open
		if err != nil {
			return nil, "", err
		}
	}
	m, err = d.spawn(ctx, spec)
	return m, tap, err
}

// checkUnused returns an error while any process may still use the VM's disks.
func (d *Driver) checkUnused(spec vmm.Spec) error {
	pids, err := d.cgroups.Members(spec.ID)
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return errs.New(errs.Conflict, "machine_runs", "a process of an earlier start of this VM still runs").
			WithHint("end the processes %v on the host, then start the VM again", pids)
	}
	if slices.ContainsFunc(rootsIn(spec.Dir), d.runsIn) {
		return errs.New(errs.Conflict, "machine_runs", "another process runs in the directory of this VM").
			WithHint("end it on the host, then start the VM again")
	}
	return nil
}

// spawn starts the process.
func (d *Driver) spawn(ctx context.Context, spec vmm.Spec) (*machine, error) {
	stdin, stdout, err := openConsole(spec.Dir)
	if err != nil {
		return nil, err
	}
	defer closeAll([]*os.File{stdin, stdout})
	stderr, err := os.OpenFile(filepath.Join(spec.Dir, logPipe+".pipe"), os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stderr.Close() }()
	p := jail.Process{
		Stdin: stdin, Stdout: stdout, Stderr: stderr, Cgroup: d.limits(spec),
		HostNetwork: spec.NIC != nil, OwnPIDs: true,
	}
	root := d.root(spec.Dir, spec.ID)
	if d.unjailed {
		p.Path, p.Args, p.Dir = d.binary, append([]string{"--id", jailID(spec.ID)}, arguments()...), root
		p.OpenFiles = openFiles
	} else {
		p.Path, p.Capabilities = d.jailer, jailerCapabilities
		if p.Args, err = d.jailerArguments(spec); err != nil {
			return nil, err
		}
	}
	proc, err := jail.Start(ctx, p)
	if err != nil {
		return nil, err
	}
	m, err := d.newMachine(vmm.Handle{Driver: Name, ID: spec.ID, Dir: spec.Dir, Socket: filepath.Join(root, apiSocket)}, root, proc)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// attach waits until a process that was just started serves its API, and sets the
// handle.
func (m *machine) attach(ctx context.Context, d *Driver, a *api) error {
	if err := m.awaitAPI(ctx); err != nil {
		return err
	}
	if !d.unjailed { // the process has the mounts in its own namespace
		if err := unmountBelow(filepath.Join(m.Handle().Dir, jailFolder)); err != nil {
			return err
		}
	}
	return m.identify(ctx, a, d.exeOf(m.api.root))
}

// apiPollInterval is how often awaitAPI tries to connect. A process serves its API some
// 3 ms after its start.
const apiPollInterval = 250 * time.Microsecond

// awaitAPI returns once the process accepts connections to its API.
func (m *machine) awaitAPI(ctx context.Context) error {
	ticker := time.NewTicker(apiPollInterval)
	defer ticker.Stop()
	for {
		conn, err := dialWithin(ctx, m.api.root, apiSocket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ticker.C:
		case <-m.Exited():
			return errors.New("the process ended before it served its API: " + m.Exit().Detail)
		case <-ctx.Done():
			return fmt.Errorf("the process does not serve its API: %w", ctx.Err())
		}
	}
}

// identify sets the handle and the version of a process that executes Firecracker.
func (m *machine) identify(ctx context.Context, a *api, exe string) error {
	id, err := jail.Identify(m.Proc.Identity().PID)
	if err != nil {
		return err
	}
	if id.Exe != exe {
		return fmt.Errorf("the process runs %s instead of %s", id.Exe, exe)
	}
	i, err := a.instance(ctx)
	if err != nil {
		return err
	}
	v, err := parseVersion(i.Version)
	if err != nil {
		return err
	}
	h := m.Handle()
	h.PID, h.StartTime, h.BootID, h.Exe, h.Version = id.PID, id.StartTime, id.BootID, id.Exe, i.Version
	m.SetHandle(h)
	m.version.Store(&v)
	return nil
}
