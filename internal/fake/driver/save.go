package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/hatchvm/hatch/internal/vmm"
)

// devices is the state that Save writes beside the memory.
type devices struct {
	Boots   int
	Greeted bool
	Deaf    bool
}

// memory is the content of a guest's memory: JSON at the start of the file. An
// all-zero file was never written to.
type memory struct {
	Ticks int
	Kept  []string
}

// Save implements vmm.Machine.
func (m *machine) Save(_ context.Context, spec vmm.Spec, dir string) error {
	if err := errors.Join(m.check(), m.driver.Calls.Begin("Save")); err != nil {
		return err
	}
	if spec.Memory == "" {
		return vmm.NotShared(spec.ID)
	}
	wasPaused := m.guest.paused()
	m.guest.setPaused(true)
	err := m.save(spec, dir)
	if err == nil {
		return nil
	}
	m.guest.setPaused(wasPaused)
	return errors.Join(err, vmm.RemoveSaved(dir))
}

func (m *machine) save(spec vmm.Spec, dir string) error {
	devs, mem := m.guest.state()
	if err := mem.write(spec.Memory); err != nil {
		return fmt.Errorf("cannot save the machine's memory: %w", err)
	}
	text, err := json.Marshal(devs)
	if err != nil {
		return fmt.Errorf("cannot encode the machine's devices: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, vmm.SavedDevices), text, 0o600); err != nil {
		return fmt.Errorf("cannot save the machine's devices: %w", err)
	}
	s, err := vmm.NewSaved(spec, dir)
	if err != nil {
		return err
	}
	by := m.driver.saved()
	s.Driver, s.Version, s.Accel, s.CPU = by.Driver, by.Version, by.Accel, by.CPU
	return s.Write(dir)
}

// cpu is the processor that the fake host claims to have.
const cpu = "pretended"

// saved is the driver and host that the manifests name.
func (d *Driver) saved() vmm.Saved {
	return vmm.Saved{Driver: Name, Version: d.Version, Accel: "none", CPU: cpu}
}

func (g *guest) state() (devices, memory) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return devices{Boots: g.boots, Greeted: g.greeted, Deaf: g.deaf}, memory{Ticks: g.ticks, Kept: slices.Clone(g.kept)}
}

// write replaces the file's content and keeps its size.
func (m memory) write(path string) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(0), f.Truncate(st.Size())); err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	return err
}

// readMemory reads the memory that a woken guest starts with: the base's, or
// the file's.
func readMemory(spec vmm.Spec) (m memory, err error) {
	f, err := os.Open(spec.Memory)
	if err != nil {
		return m, vmm.Unusable("its memory cannot be read").WithCause(err)
	}
	defer func() { _ = f.Close() }()
	from := f
	if spec.Base != nil {
		if err := requireSameSize(spec.Base, f); err != nil {
			return m, vmm.Unusable("its memory cannot be read").WithCause(err)
		}
		from = spec.Base
	}
	text, err := io.ReadAll(io.NewSectionReader(from, 0, maxMemory))
	if err != nil {
		return m, vmm.Unusable("its memory cannot be read").WithCause(err)
	}
	if text = bytes.TrimRight(text, "\x00"); len(text) == 0 {
		return m, nil
	}
	return m, json.Unmarshal(text, &m)
}

// maxMemory is the most that a guest has in its memory, in bytes.
const maxMemory = 4096

func requireSameSize(a, b *os.File) error {
	sa, err := a.Stat()
	if err != nil {
		return err
	}
	sb, err := b.Stat()
	if err == nil && sa.Size() != sb.Size() {
		err = fmt.Errorf("%d bytes instead of %d", sa.Size(), sb.Size())
	}
	return err
}

// Wake implements vmm.Driver.
func (d *Driver) Wake(ctx context.Context, spec vmm.Spec, dir string) (vmm.Machine, error) {
	if spec.NIC != nil && spec.NIC.TAP != nil {
		defer func() { _ = spec.NIC.TAP.Close() }()
	}
	if err := errors.Join(ctx.Err(), d.Calls.Begin("Wake")); err != nil {
		return nil, err
	}
	if err := d.check(spec, dir); err != nil {
		return nil, err
	}
	devs, err := readDevices(dir)
	if err != nil {
		return nil, err
	}
	mem, err := readMemory(spec)
	if err != nil {
		return nil, err
	}
	g, err := d.host.boot(spec, d.Version)
	if err != nil {
		return nil, err
	}
	g.setPaused(true)
	g.mu.Lock()
	g.boots, g.greeted, g.deaf = devs.Boots, devs.Greeted, devs.Deaf
	g.kept = mem.Kept
	g.setTicksLocked(mem.Ticks)
	g.mu.Unlock()
	return newMachine(g, d), nil
}

// Check implements vmm.Driver.
func (d *Driver) Check(spec vmm.Spec, dir string) error {
	if err := d.Calls.Begin("Check"); err != nil {
		return err
	}
	return d.check(spec, dir)
}

func (d *Driver) check(spec vmm.Spec, dir string) error {
	s, err := vmm.ReadSaved(dir)
	if err != nil {
		return err
	}
	return s.Check(d.saved(), spec, dir)
}

func readDevices(dir string) (devs devices, err error) {
	text, err := os.ReadFile(filepath.Join(dir, vmm.SavedDevices))
	if err != nil {
		return devs, err
	}
	return devs, json.Unmarshal(text, &devs)
}
