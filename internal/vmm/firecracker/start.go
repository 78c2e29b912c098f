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

// startLimit bounds a start whose caller does not.
const startLimit = 30 * time.Second

// jailerNeeds are the capabilities that the jailer uses up to the moment when
// it becomes Firecracker's user.
var jailerNeeds = []uintptr{
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
	return d.begin(ctx, spec, "")
}

// begin boots a machine, or wakes the one whose devices are in the file state.
func (d *Driver) begin(ctx context.Context, spec vmm.Spec, state string) (vmm.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !d.reserve(spec.Dir) {
		return nil, errs.New(errs.Conflict, "machine_starts", "another start of this VM is under way")
	}
	defer d.release(spec.Dir)
	m, tap, err := d.launch(ctx, spec, state)
	if err != nil {
		return nil, err
	}
	talk, end := m.api.lasting()
	defer end()
	if err = d.ready(ctx, m, talk, spec, state, tap); err == nil && state == "" {
		err = talk.action(ctx, "InstanceStart")
	}
	if err != nil {
		return nil, m.discard(err)
	}
	return m, nil
}

// ready tells a process just started what its machine is, and returns when the
// guest may run: nothing that the process does not need is in its reach, and all
// limits hold.
func (d *Driver) ready(ctx context.Context, m *machine, talk *api, spec vmm.Spec, state, tap string) error {
	err := m.meet(ctx, d, talk)
	switch {
	case err != nil:
	case state == "":
		err = configure(ctx, talk, m.version, spec, tap)
	default:
		err = m.load(ctx, talk, spec, tap)
	}
	if err == nil {
		err = m.seal()
	}
	if err == nil {
		d.notes.Tell(d.log, m.proc.Note())
	}
	return err
}

// reserve reports whether nobody else starts a machine in dir, or tidies there.
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

// launch starts a process that knows of no machine yet.
func (d *Driver) launch(ctx context.Context, spec vmm.Spec, state string) (m *machine, tap string, err error) {
	if err := d.checkUnused(spec); err != nil {
		return nil, "", err
	}
	if err := errors.Join(endTAP(spec.Dir), clearOut(spec.Dir)); err != nil { // of a machine that ended unseen
		return nil, "", err
	}
	defer func() {
		if err != nil && m == nil {
			err = errors.Join(err, endTAP(spec.Dir), clearOut(spec.Dir))
		}
	}()
	if err := ignoreMissing(os.Remove(filepath.Join(spec.Dir, vmm.LogName))); err != nil {
		return nil, "", err
	}
	if state == "" {
		if spec.Kernel, err = d.kernels.bare(spec.Kernel); err != nil {
			return nil, "", err
		}
	}
	room := chroot{path: d.root(spec.Dir, spec.ID), uid: spec.UID, gid: spec.GID}
	if err := room.furnish(spec, state); err != nil {
		return nil, "", err
	}
	if spec.NIC != nil {
		tap, err = lendTAP(spec.NIC.TAP, spec.UID, spec.Dir)
		_ = spec.NIC.TAP.Close() // it has one holder at a time
		if err != nil {
			return nil, "", err
		}
	}
	m, err = d.spawn(ctx, spec)
	return m, tap, err
}

// checkUnused refuses while a process may still use the VM's disks, whatever it runs.
func (d *Driver) checkUnused(spec vmm.Spec) error {
	pids, err := jail.Members(spec.ID)
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return errs.New(errs.Conflict, "machine_runs", "a process of an earlier start of this VM still lives").
			WithHint("end the processes %v on the host, then start the VM again", pids)
	}
	if slices.ContainsFunc(rootsIn(spec.Dir), d.runsIn) {
		return errs.New(errs.Conflict, "machine_runs", "another process runs in the directory of this VM").
			WithHint("end it on the host, then start the VM again")
	}
	return nil
}

// spawn starts the process and takes hold of it.
func (d *Driver) spawn(ctx context.Context, spec vmm.Spec) (*machine, error) {
	stdin, stdout, err := openConsole(spec.Dir)
	if err != nil {
		return nil, err
	}
	defer closeAll([]*os.File{stdin, stdout})
	words, err := os.OpenFile(filepath.Join(spec.Dir, logPipe+".pipe"), os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = words.Close() }()
	p := jail.Process{
		Stdin: stdin, Stdout: stdout, Stderr: words, Cgroup: limits(spec),
		HostNetwork: spec.NIC != nil, OwnPIDs: true,
	}
	root := d.root(spec.Dir, spec.ID)
	if d.unjailed {
		p.Path, p.Args, p.Dir = d.binary, append([]string{"--id", jailID(spec.ID)}, arguments()...), root
		p.OpenFiles = openFiles
	} else {
		p.Path, p.Capabilities = d.jailer, jailerNeeds
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

// meet waits for a process just started and notes what it is.
func (m *machine) meet(ctx context.Context, d *Driver, talk *api) error {
	if err := m.awaitAPI(ctx); err != nil {
		return err
	}
	if !d.unjailed { // it has what was mounted for it in a namespace of its own
		if err := unmountBelow(filepath.Join(m.handle.Dir, jailFolder)); err != nil {
			return err
		}
	}
	return m.recognise(ctx, talk, d.exeOf(m.api.root))
}

func (m *machine) seal() error {
	if err := (chroot{path: m.api.root}).seal(); err != nil {
		return fmt.Errorf("cannot seal the machine's root directory: %w", err)
	}
	return nil
}

// lookAgain is how often a process just started is asked whether it answers,
// which takes it some 3 ms.
const lookAgain = 250 * time.Microsecond

// awaitAPI returns once the process answers.
func (m *machine) awaitAPI(ctx context.Context) error {
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		conn, err := dialWithin(ctx, m.api.root, apiSocket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-again.C:
		case <-m.exited:
			return errors.New("the process ended at once: " + m.exit.Detail)
		case <-ctx.Done():
			return fmt.Errorf("the process does not answer: %w", ctx.Err())
		}
	}
}

// recognise notes what a process that has become Firecracker is.
func (m *machine) recognise(ctx context.Context, talk *api, exe string) error {
	id, err := jail.Identify(m.proc.Identity().PID)
	if err != nil {
		return err
	}
	if id.Exe != exe {
		return fmt.Errorf("the process runs %s instead of %s", id.Exe, exe)
	}
	i, err := talk.instance(ctx)
	if err != nil {
		return err
	}
	h := &m.handle
	h.PID, h.StartTime, h.BootID, h.Exe, h.Version = id.PID, id.StartTime, id.BootID, id.Exe, i.Version
	m.version, err = parseVersion(i.Version)
	return err
}

// discard ends a machine whose start failed, and says why it did.
func (m *machine) discard(cause error) error {
	bounded, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if err := m.Kill(bounded); err != nil {
		cause = errors.Join(cause, err)
	}
	if err := m.Close(); err != nil {
		cause = errors.Join(cause, err)
	}
	if last := m.lastWords(); last != "" {
		cause = fmt.Errorf("%w; Firecracker said: %s", cause, last)
	}
	return errs.New(errs.Internal, "vmm_start_failed", "Firecracker would not start the VM").WithCause(cause)
}
