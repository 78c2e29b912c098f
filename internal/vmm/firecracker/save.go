//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/vmm"
)

// saveTimeout bounds a save.
const saveTimeout = 2 * time.Minute

// maxState bounds the state of the devices that Firecracker writes, in bytes; it has
// some 100 KiB.
const maxState = 64 << 20

// Save implements vmm.Machine. It makes a snapshot of Firecracker's, if possible a
// differential one, which has only the pages that changed since the last one. Since
// the memory file is all zeros at the start, even the first can be differential.
func (m *machine) Save(ctx context.Context, spec vmm.Spec, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	if err := m.checkSavable(ctx, spec); err != nil {
		return err
	}
	m.saving.Lock()
	defer m.saving.Unlock()
	wasPaused, err := m.Paused(ctx)
	if err != nil {
		return err
	}
	if err := m.save(ctx, spec, dir); err != nil {
		return errors.Join(err, m.undoSave(ctx, dir, wasPaused))
	}
	return nil
}

func (m *machine) checkSavable(ctx context.Context, spec vmm.Spec) error {
	var config machineConfig
	if err := m.command(ctx, func(ctx context.Context) error {
		if m.version.Load() == nil { // it did not answer Adopt
			if err := m.checkIdentity(ctx); err != nil {
				return err
			}
		}
		return m.api.call(ctx, http.MethodGet, "/machine-config", nil, &config)
	}); err != nil {
		return err
	}
	if spec.Memory == "" || !config.TrackDirty {
		return vmm.NotShared(m.Handle().ID)
	}
	return checkSave(*m.version.Load())
}

func (m *machine) save(ctx context.Context, spec vmm.Spec, dir string) error {
	if err := m.Pause(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	m.saved = true
	m.mu.Unlock()
	snap := snapshot{Memory: memoryFile, State: stateFile, Type: snapshotType(*m.version.Load(), spec.MemMiB)}
	if err := m.api.put(ctx, "/snapshot/create", snap); err != nil {
		return m.explain(err)
	}
	if err := fetchState(m.api.root, filepath.Join(dir, vmm.SavedDevices)); err != nil {
		return fmt.Errorf("cannot save the machine's devices: %w", err)
	}
	s, err := vmm.NewSaved(spec, dir)
	if err != nil {
		return err
	}
	s.Driver, s.Version, s.Accel, s.CPU = Name, m.Handle().Version, accel, m.hostCPU
	return s.Write(dir)
}

// fetchState copies the state of the devices from the process's root directory to a
// file that the process cannot reach.
func fetchState(root, to string) error {
	from, err := openWithin(root, stateFile, unix.O_RDONLY|unix.O_NONBLOCK, unix.S_IFREG)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(from), stateFile)
	defer func() { _ = f.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(f, maxState+1))
	if err == nil && n > maxState {
		err = fmt.Errorf("their state has more than %d MiB", maxState>>20)
	}
	return errors.Join(err, out.Close())
}

// undoSave removes the files of a save that failed, and resumes the guest unless it
// was paused before.
func (m *machine) undoSave(ctx context.Context, dir string, wasPaused bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTimeout)
	defer cancel()
	failures := []error{vmm.RemoveSaved(dir)}
	if !wasPaused {
		failures = append(failures, m.Resume(ctx))
	}
	return errors.Join(failures...)
}

// Wake implements vmm.Driver.
func (d *Driver) Wake(ctx context.Context, spec vmm.Spec, dir string) (vmm.Machine, error) {
	if spec.NIC != nil {
		defer func() { _ = spec.NIC.TAP.Close() }()
	}
	if err := d.checkSaved(spec, dir); err != nil {
		return nil, err
	}
	if spec.Base != nil {
		if err := copyBase(ctx, spec); err != nil {
			return nil, fmt.Errorf("cannot copy the base to the guest's memory: %w", err)
		}
	}
	return d.startMachine(ctx, spec, filepath.Join(dir, vmm.SavedDevices))
}

// Check implements vmm.Driver.
func (d *Driver) Check(spec vmm.Spec, dir string) error {
	if err := errors.Join(checkSpec(spec), checkSave(d.version)); err != nil {
		return err
	}
	s, err := vmm.ReadSaved(dir)
	if err != nil {
		return err
	}
	return s.Check(vmm.Saved{Driver: Name, Version: d.version.String(), Accel: accel, CPU: d.cpu}, spec, dir)
}

// checkSaved is Check, and looks at the memory too.
func (d *Driver) checkSaved(spec vmm.Spec, dir string) error {
	if err := d.Check(spec, dir); err != nil {
		return err
	}
	err := checkMemory(spec)
	if err == nil && spec.Base != nil {
		err = checkSize(spec.Base.Stat, spec)
	}
	if err != nil {
		return vmm.Unusable("its memory cannot be read").WithCause(err)
	}
	return nil
}

// checkMemory checks the size of the file for the guest's memory: Firecracker would
// replace a file of another size, or read past its end.
func checkMemory(spec vmm.Spec) error {
	return checkSize(func() (os.FileInfo, error) { return os.Stat(spec.Memory) }, spec)
}

func checkSize(stat func() (os.FileInfo, error), spec vmm.Spec) error {
	st, err := stat()
	if err != nil {
		return err
	}
	if want := int64(spec.MemMiB) << 20; st.Size() != want {
		return fmt.Errorf("it has %d bytes instead of %d", st.Size(), want)
	}
	return nil
}

// copyBase replaces the content of the file for the guest's memory with the base; an
// earlier wake that failed may have written to the file. The machine shares no memory
// then.
func copyBase(ctx context.Context, spec vmm.Spec) error {
	src, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", spec.Base.Fd())) // with an offset of its own
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(spec.Memory, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	size := int64(spec.MemMiB) << 20
	err = errors.Join(dst.Truncate(0), dst.Truncate(size))
	if err == nil {
		err = sparse.Part("memory").Copy(ctx, dst, src, size)
	}
	return errors.Join(err, dst.Close())
}

// load makes a process that was just started read a saved machine. Its guest is paused
// afterwards.
func (m *machine) load(ctx context.Context, a *api, spec vmm.Spec, tap string) error {
	in := snapshotLoad{State: stateFile, Memory: memoryBackend{Type: "File", Path: memoryFile}}
	if m.version.Load().Before(version{1, 16, 0}) {
		in.TrackDirtyOld = true
	} else {
		in.TrackDirty = true
	}
	if spec.NIC != nil {
		in.Networks = []networkOverride{{ID: networkID, TAP: tap}}
	}
	if err := a.put(ctx, "/snapshot/load", in); err != nil {
		return err
	}
	return setLimits(ctx, a, spec)
}

// Bodies of requests, as Firecracker's API description names their fields.
type (
	snapshot struct {
		Memory string `json:"mem_file_path"`
		State  string `json:"snapshot_path"`
		Type   string `json:"snapshot_type"`
	}
	// The agent's socket has the same path in every jail, so vsock_override, which
	// Firecracker 1.16 has in addition to these fields, is not needed.
	snapshotLoad struct {
		State         string            `json:"snapshot_path"`
		Memory        memoryBackend     `json:"mem_backend"`
		TrackDirtyOld bool              `json:"enable_diff_snapshots,omitempty"` // its name before 1.16
		TrackDirty    bool              `json:"track_dirty_pages,omitempty"`
		Resume        bool              `json:"resume_vm"`
		Networks      []networkOverride `json:"network_overrides,omitempty"`
	}
	memoryBackend struct {
		Type string `json:"backend_type"`
		Path string `json:"backend_path"`
	}
	networkOverride struct {
		ID  string `json:"iface_id"`
		TAP string `json:"host_dev_name"`
	}
)
