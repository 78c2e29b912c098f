//go:build linux && amd64

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/mapping"
	"github.com/hatchvm/hatch/internal/vmm"
)

const (
	// saveLimit bounds the writing and the reading of a machine's devices, some
	// 100 KiB.
	saveLimit = 30 * time.Second
	// copyRate bounds the copying of a guest's memory, in MiB per second: a disk
	// that swaps is faster.
	copyRate = 32
)

// fileName is what QEMU is told to call a file that it is handed.
const fileName = "devices"

// Save implements vmm.Machine.
func (m *machine) Save(ctx context.Context, spec vmm.Spec, dir string) error {
	private, err := m.privateMemory(ctx, spec)
	if err != nil {
		return err
	}
	m.saving.Lock()
	defer m.saving.Unlock()
	ctx, cancel := context.WithTimeout(ctx, saveLimit+time.Duration(spec.MemMiB/copyRate)*time.Second)
	defer cancel()
	stood, err := m.Paused(ctx)
	if err != nil {
		return err
	}
	if err := m.save(ctx, spec, private, dir); err != nil {
		return errors.Join(err, m.unsave(ctx, dir, stood))
	}
	return nil
}

// privateMemory returns what the machine has mapped of a base; nil when its
// memory is the file already. The process itself shows which it is, also to a
// daemon that adopted it.
func (m *machine) privateMemory(ctx context.Context, spec vmm.Spec) (*mapping.Mapping, error) {
	if spec.Memory != "" && jail.HoldsFile(m.handle.PID, map[string]bool{spec.Memory: true}) {
		return nil, nil
	}
	private, err := mapping.Find(m.handle.PID, vmm.BaseName, int64(spec.MemMiB)<<20)
	if err == nil && spec.Memory != "" {
		return private, nil
	}
	if gone := m.command(ctx, "query-status", nil); gone != nil {
		return nil, gone
	}
	if err == nil || errors.Is(err, mapping.ErrNone) {
		return nil, vmm.NotShared(m.handle.ID)
	}
	return nil, err
}

// save writes the memory after the devices, which is when nothing changes it
// any more.
func (m *machine) save(ctx context.Context, spec vmm.Spec, private *mapping.Mapping, dir string) error {
	if err := m.command(ctx, "stop", nil); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, vmm.SavedDevices), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make the file for the machine's devices: %w", err)
	}
	err = m.writeDevices(ctx, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot save the machine's devices: %w", err)
	}
	if private != nil {
		if err := m.writeMemory(ctx, spec, private); err != nil {
			return fmt.Errorf("cannot save the machine's memory: %w", err)
		}
	}
	return m.describe(ctx, spec, dir)
}

// writeDevices lets QEMU write all that it knows of the machine but for its
// memory and its disks. It does so before it answers.
func (m *machine) writeDevices(ctx context.Context, f *os.File) (err error) {
	var set struct {
		ID *int `json:"fdset-id"`
	}
	if err := m.run(ctx, qmpCommand{name: "add-fd", file: f}, &set); err != nil {
		return err
	}
	if set.ID == nil {
		return errors.New("QEMU does not tell what it calls the file")
	}
	defer func() {
		remove := qmpCommand{name: "remove-fd", args: map[string]any{"fdset-id": *set.ID}}
		err = errors.Join(err, m.run(context.WithoutCancel(ctx), remove, nil))
	}()
	return m.run(ctx, qmpCommand{name: "xen-save-devices-state", args: map[string]any{
		"filename": fmt.Sprintf("/dev/fdset/%d", *set.ID), "live": false, // else it would let go of the disks
	}}, nil)
}

func (m *machine) writeMemory(ctx context.Context, spec vmm.Spec, private *mapping.Mapping) error {
	f, err := openMemory(spec)
	if err != nil {
		return err
	}
	began := time.Now()
	copied, err := private.CopyTo(ctx, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	m.log.Debug("memory copied", "vm", m.handle.ID, "changed", copied.Changed, "written", copied.Written, "took", time.Since(began))
	return nil
}

// describe writes the manifest of what has been saved. The acceleration is
// asked for: an earlier daemon may have chosen another one.
func (m *machine) describe(ctx context.Context, spec vmm.Spec, dir string) error {
	s, err := vmm.NewSaved(spec, dir)
	if err != nil {
		return err
	}
	var kvm struct{ Enabled bool }
	if err := m.command(ctx, "query-kvm", &kvm); err != nil {
		return err
	}
	s.Driver, s.Version, s.Accel, s.CPU = Name, m.handle.Version, AccelTCG, m.hostCPU
	if kvm.Enabled {
		s.Accel = AccelKVM
	}
	return s.Write(dir)
}

// unsave undoes a save that failed: files, and the guest goes on.
func (m *machine) unsave(ctx context.Context, dir string, stood bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandLimit)
	defer cancel()
	faults := []error{vmm.RemoveSaved(dir)}
	if !stood {
		faults = append(faults, m.command(ctx, "cont", nil))
	}
	return errors.Join(faults...)
}

// read lets QEMU read its devices from the file, which it calls a migration,
// and waits until it has.
func (m *machine) read(ctx context.Context, f *os.File) error {
	for _, c := range []qmpCommand{
		{name: "migrate-set-capabilities", args: map[string]any{"capabilities": []any{
			map[string]any{"capability": "events", "state": true},
		}}},
		{name: "getfd", args: map[string]any{"fdname": fileName}, file: f},
		{name: "migrate-incoming", args: map[string]any{"uri": "fd:" + fileName}},
	} {
		if err := m.run(ctx, c, nil); err != nil {
			return err
		}
	}
	select {
	case how := <-m.moved:
		return m.judgeMove(ctx, how)
	case <-m.exited:
		return errGone(m.handle.ID)
	case <-ctx.Done():
		return fmt.Errorf("QEMU does not come to an end: %w", ctx.Err())
	}
}

// observeMigration keeps how a loading ended.
func (m *machine) observeMigration(data json.RawMessage) {
	var now struct{ Status string }
	_ = json.Unmarshal(data, &now) // no status is none that counts
	switch now.Status {
	case moveDone, "failed", "cancelled":
		select {
		case m.moved <- now.Status:
		default:
		}
	}
}

const moveDone = "completed"

func (m *machine) judgeMove(ctx context.Context, how string) error {
	if how == moveDone {
		return nil
	}
	var why struct {
		Desc string `json:"error-desc"`
	}
	if err := m.command(ctx, "query-migrate", &why); err != nil {
		return err
	}
	return fmt.Errorf("QEMU says that it %s: %s", how, why.Desc)
}

// Wake implements vmm.Driver.
func (d *Driver) Wake(ctx context.Context, spec vmm.Spec, dir string) (vmm.Machine, error) {
	if spec.NIC != nil {
		defer func() { _ = spec.NIC.TAP.Close() }()
	}
	if err := d.checkSaved(spec, dir); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(dir, vmm.SavedDevices))
	if err != nil {
		return nil, fmt.Errorf("cannot read the machine's devices: %w", err)
	}
	defer func() { _ = f.Close() }()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	m, err := d.launch(ctx, spec, wakes)
	if err != nil {
		return nil, err
	}
	if err := m.load(ctx, f); err != nil {
		return nil, m.discard(err)
	}
	d.notes.Tell(d.log, m.proc.Note())
	return m, nil
}

// Check implements vmm.Driver.
func (d *Driver) Check(spec vmm.Spec, dir string) error {
	if err := checkSpec(spec); err != nil {
		return err
	}
	s, err := vmm.ReadSaved(dir)
	if err != nil {
		return err
	}
	return s.Check(vmm.Saved{Driver: Name, Version: d.version, Accel: d.accel.name, CPU: d.cpu}, spec, dir)
}

// checkSaved refuses what cannot be woken here.
func (d *Driver) checkSaved(spec vmm.Spec, dir string) error {
	if err := d.Check(spec, dir); err != nil {
		return err
	}
	f, err := openMemory(spec)
	if err == nil {
		err = f.Close()
	}
	if err == nil && spec.Base != nil {
		err = checkMemory(spec.Base, spec)
	}
	if err != nil {
		return vmm.Unusable("its memory cannot be read").WithCause(err)
	}
	return nil
}

// load reads the devices of a machine just launched. The guest's CPUs still
// stand afterwards.
func (m *machine) load(ctx context.Context, f *os.File) error {
	if err := m.meet(ctx); err != nil {
		return err
	}
	return m.read(ctx, f)
}
