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
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/process"
)

const (
	// saveTimeout bounds the write of a machine's devices, some 100 KiB.
	saveTimeout = 30 * time.Second
	// copyRate is the rate, in MiB per second, below which a copy of a guest's memory
	// times out. Even a guest that is swapped out is copied faster.
	copyRate = 32
)

// fileName is QEMU's name for the descriptor that readDevices passes to it.
const fileName = "devices"

// Save implements vmm.Machine.
func (m *machine) Save(ctx context.Context, spec vmm.Spec, dir string) error {
	private, err := m.privateMemory(ctx, spec)
	if err != nil {
		return err
	}
	m.saving.Lock()
	defer m.saving.Unlock()
	ctx, cancel := context.WithTimeout(ctx, saveTimeout+time.Duration(spec.MemMiB/copyRate)*time.Second)
	defer cancel()
	wasPaused, err := m.Paused(ctx)
	if err != nil {
		return err
	}
	if err := m.save(ctx, spec, private, dir); err != nil {
		return errors.Join(err, m.undoSave(ctx, dir, wasPaused))
	}
	return nil
}

// privateMemory returns the machine's private mapping of a base; nil when spec.Memory
// is its memory. It looks at the process, so that it works for an adopted machine
// too.
func (m *machine) privateMemory(ctx context.Context, spec vmm.Spec) (*mapping.Mapping, error) {
	if spec.Memory != "" && jail.HoldsFile(m.Handle().PID, map[string]bool{spec.Memory: true}) {
		return nil, nil
	}
	private, err := mapping.Find(m.Handle().PID, vmm.BaseName, int64(spec.MemMiB)<<20)
	if err == nil && spec.Memory != "" {
		return private, nil
	}
	if gone := m.command(ctx, "query-status", nil); gone != nil {
		return nil, gone
	}
	if err == nil || errors.Is(err, mapping.ErrNone) {
		return nil, vmm.NotShared(m.Handle().ID)
	}
	return nil, err
}

// save pauses the guest and writes the devices, the memory and the manifest. The
// memory comes after the devices: until then QEMU may still change it.
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
	return m.writeManifest(ctx, spec, dir)
}

// writeDevices makes QEMU write the state of all devices, without memory and disks.
// QEMU answers when it has written it.
func (m *machine) writeDevices(ctx context.Context, f *os.File) (err error) {
	var set struct {
		ID *int `json:"fdset-id"`
	}
	if err := m.run(ctx, qmpCommand{name: "add-fd", file: f}, &set); err != nil {
		return err
	}
	if set.ID == nil {
		return errors.New("QEMU's answer to add-fd has no fdset-id")
	}
	defer func() {
		remove := qmpCommand{name: "remove-fd", args: map[string]any{"fdset-id": *set.ID}}
		err = errors.Join(err, m.run(context.WithoutCancel(ctx), remove, nil))
	}()
	return m.run(ctx, qmpCommand{name: "xen-save-devices-state", args: map[string]any{
		"filename": fmt.Sprintf("/dev/fdset/%d", *set.ID), "live": false, // else QEMU would release the disks
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
	m.Log.Debug("memory copied", logkey.VM, m.Handle().ID, "changed", copied.Changed, "written", copied.Written, logkey.Took, time.Since(began))
	return nil
}

// writeManifest writes the manifest of the saved machine. It asks QEMU for the
// acceleration: an earlier daemon may have chosen another one.
func (m *machine) writeManifest(ctx context.Context, spec vmm.Spec, dir string) error {
	s, err := vmm.NewSaved(spec, dir)
	if err != nil {
		return err
	}
	var kvm struct{ Enabled bool }
	if err := m.command(ctx, "query-kvm", &kvm); err != nil {
		return err
	}
	s.Driver, s.Version, s.Accel, s.CPU = Name, m.Handle().Version, AccelTCG, m.hostCPU
	if kvm.Enabled {
		s.Accel = AccelKVM
	}
	return s.Write(dir)
}

// undoSave removes the files of a save that failed, and resumes the guest unless it
// was paused before.
func (m *machine) undoSave(ctx context.Context, dir string, wasPaused bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTimeout)
	defer cancel()
	failures := []error{vmm.RemoveSaved(dir)}
	if !wasPaused {
		failures = append(failures, m.command(ctx, "cont", nil))
	}
	return errors.Join(failures...)
}

// readDevices makes QEMU read the state of its devices from the file, as an incoming
// migration, and waits for its end. The guest is paused afterwards.
func (m *machine) readDevices(ctx context.Context, f *os.File) error {
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
	case status := <-m.migrated:
		return m.migrationError(ctx, status)
	case <-m.Exited():
		return process.Gone(m.Handle().ID)
	case <-ctx.Done():
		return fmt.Errorf("QEMU does not finish reading the devices: %w", ctx.Err())
	}
}

// handleMigration passes on the status in which a migration ended.
func (m *machine) handleMigration(data json.RawMessage) {
	var now struct{ Status string }
	_ = json.Unmarshal(data, &now) // an event without a status is not the end
	switch now.Status {
	case migrationCompleted, "failed", "cancelled":
		select {
		case m.migrated <- now.Status:
		default:
		}
	}
}

const migrationCompleted = "completed"

// migrationError returns nil if the status is that of a success, else QEMU's error.
func (m *machine) migrationError(ctx context.Context, status string) error {
	if status == migrationCompleted {
		return nil
	}
	var why struct {
		Desc string `json:"error-desc"`
	}
	if err := m.command(ctx, "query-migrate", &why); err != nil {
		return err
	}
	return fmt.Errorf("QEMU cannot read the devices (%s): %s", status, why.Desc)
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
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	m, err := d.launch(ctx, spec, wake)
	if err != nil {
		return nil, err
	}
	if err = m.attach(ctx); err == nil {
		err = m.readDevices(ctx, f)
	}
	if err != nil {
		return nil, m.Discard(err)
	}
	d.notes.Log(d.log, m.Proc.Note())
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

// checkSaved is Check, and looks at the memory too.
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
