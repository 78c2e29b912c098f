package vmmtest

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

// fakeDevices is what is saved of a pretended machine beside its memory.
type fakeDevices struct {
	Boots   int
	Greeted bool
	Deaf    bool
}

// fakeMemory is what a pretended guest has in its memory. It lies at the begin
// of the file, as JSON; what is all zeros was never written to.
type fakeMemory struct {
	Ticks int
	Kept  []string
}

// Save implements vmm.Machine.
func (m *fakeMachine) Save(_ context.Context, spec vmm.Spec, dir string) error {
	if err := m.check(); err != nil {
		return err
	}
	if spec.Memory == "" {
		return vmm.NotShared(spec.ID)
	}
	stood := m.guest.paused()
	m.guest.setPaused(true)
	err := m.save(spec, dir)
	if err == nil {
		return nil
	}
	m.guest.setPaused(stood)
	return errors.Join(err, vmm.RemoveSaved(dir))
}

func (m *fakeMachine) save(spec vmm.Spec, dir string) error {
	devices, memory := m.guest.state()
	if err := memory.write(spec.Memory); err != nil {
		return fmt.Errorf("cannot save the machine's memory: %w", err)
	}
	text, err := json.Marshal(devices)
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
	s.Driver, s.Version, s.Accel, s.CPU = fakeSaved.Driver, fakeSaved.Version, fakeSaved.Accel, fakeSaved.CPU
	return s.Write(dir)
}

// fakeSaved is what the manifests of the fake say of its host.
var fakeSaved = vmm.Saved{Driver: "fake", Version: fakeVersion, Accel: "none", CPU: "pretended"}

func (g *guest) state() (fakeDevices, fakeMemory) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return fakeDevices{Boots: g.boots, Greeted: g.greeted, Deaf: g.deaf}, fakeMemory{Ticks: g.ticks, Kept: slices.Clone(g.kept)}
}

// write makes a file hold this and nothing else.
func (m fakeMemory) write(path string) error {
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

// readFakeMemory reads what a guest's memory begins as: its base's content, or
// what lies in the file.
func readFakeMemory(spec vmm.Spec) (m fakeMemory, err error) {
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
	text, err := io.ReadAll(io.NewSectionReader(from, 0, maxFakeMemory))
	if err != nil {
		return m, vmm.Unusable("its memory cannot be read").WithCause(err)
	}
	if text = bytes.TrimRight(text, "\x00"); len(text) == 0 {
		return m, nil
	}
	return m, json.Unmarshal(text, &m)
}

// maxFakeMemory is how much a pretended guest has in its memory, in bytes.
const maxFakeMemory = 4096

func requireSameSize(a, b *os.File) error {
	one, err := a.Stat()
	if err != nil {
		return err
	}
	other, err := b.Stat()
	if err == nil && one.Size() != other.Size() {
		err = fmt.Errorf("%d bytes instead of %d", one.Size(), other.Size())
	}
	return err
}

// Wake implements vmm.Driver.
func (f *Fake) Wake(ctx context.Context, spec vmm.Spec, dir string) (vmm.Machine, error) {
	if spec.NIC != nil && spec.NIC.TAP != nil {
		defer func() { _ = spec.NIC.TAP.Close() }()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := f.Check(spec, dir); err != nil {
		return nil, err
	}
	devices, err := readFakeDevices(dir)
	if err != nil {
		return nil, err
	}
	memory, err := readFakeMemory(spec)
	if err != nil {
		return nil, err
	}
	g, err := f.host.boot(spec)
	if err != nil {
		return nil, err
	}
	g.setPaused(true)
	g.mu.Lock()
	g.boots, g.greeted, g.deaf = devices.Boots, devices.Greeted, devices.Deaf
	g.ticks, g.kept = memory.Ticks, memory.Kept
	g.mu.Unlock()
	return newFakeMachine(g, f.agent), nil
}

// Check implements vmm.Driver.
func (f *Fake) Check(spec vmm.Spec, dir string) error {
	s, err := vmm.ReadSaved(dir)
	if err != nil {
		return err
	}
	return s.Check(fakeSaved, spec, dir)
}

func readFakeDevices(dir string) (devices fakeDevices, err error) {
	text, err := os.ReadFile(filepath.Join(dir, vmm.SavedDevices))
	if err != nil {
		return devices, err
	}
	return devices, json.Unmarshal(text, &devices)
}
