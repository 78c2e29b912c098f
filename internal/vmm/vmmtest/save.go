package vmmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/vmm"
)

// fakeDevices is what is saved of a pretended machine.
type fakeDevices struct {
	Ticks   int
	Boots   int
	Greeted bool
	Deaf    bool
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
	text, err := json.Marshal(m.guest.devices())
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

func (g *guest) devices() fakeDevices {
	g.mu.Lock()
	defer g.mu.Unlock()
	return fakeDevices{Ticks: g.ticks, Boots: g.boots, Greeted: g.greeted, Deaf: g.deaf}
}

// Wake implements vmm.Driver.
func (f *Fake) Wake(ctx context.Context, spec vmm.Spec, dir string) (vmm.Machine, error) {
	if spec.NIC != nil && spec.NIC.TAP != nil {
		defer func() { _ = spec.NIC.TAP.Close() }()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	devices, err := readFakeDevices(spec, dir)
	if err != nil {
		return nil, err
	}
	g, err := f.host.boot(spec)
	if err != nil {
		return nil, err
	}
	g.setPaused(true)
	g.mu.Lock()
	g.ticks, g.boots, g.greeted, g.deaf = devices.Ticks, devices.Boots, devices.Greeted, devices.Deaf
	g.mu.Unlock()
	return newFakeMachine(g, f.agent), nil
}

func readFakeDevices(spec vmm.Spec, dir string) (devices fakeDevices, err error) {
	s, err := vmm.ReadSaved(dir)
	if err != nil {
		return devices, err
	}
	if err := s.Check(fakeSaved, spec, dir); err != nil {
		return devices, err
	}
	if _, err := os.Stat(spec.Memory); err != nil {
		return devices, vmm.Unusable("its memory cannot be read").WithCause(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, vmm.SavedDevices))
	if err != nil {
		return devices, err
	}
	return devices, json.Unmarshal(text, &devices)
}
