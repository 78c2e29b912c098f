package power

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vmm"
)

// bootingMachine is a machine whose guest boots: its agent answers after some time, and
// then powers off. Its power button does nothing.
type bootingMachine struct {
	vmm.Machine
	exited  chan struct{}
	pressed int
}

func (m *bootingMachine) Exited() <-chan struct{} { return m.exited }

func (m *bootingMachine) Resume(context.Context) error { return nil }

func (m *bootingMachine) PowerButton(context.Context) error {
	m.pressed++
	return nil
}

// bootTime is how long the guest boots.
const bootTime = 20 * time.Second

type bootingGuest struct {
	vm.Session
	machine *bootingMachine
}

func (g bootingGuest) Shutdown(ctx context.Context, _ bool, accepted func()) error {
	select {
	case <-time.After(bootTime):
		accepted()
		close(g.machine.exited)
	case <-ctx.Done():
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestAGuestThatBootsIsStoppedByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Service{Config: Config{Log: slog.New(slog.DiscardHandler)}}
		m := &bootingMachine{exited: make(chan struct{})}
		began := time.Now()
		killed, err := s.shutDown(t.Context(), &live.Machine{Machine: m, Guest: bootingGuest{machine: m}}, 30*time.Second, nil)
		if err != nil || killed != "" || time.Since(began) != bootTime {
			t.Errorf("it ended after %s%s: %v", time.Since(began), killed, err)
		}
		if m.pressed != 1 {
			t.Errorf("its power button was pressed %d times", m.pressed)
		}
	})
}
