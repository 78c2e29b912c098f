package lifecycle_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
)

func metricsOf(t *testing.T, w *world, id string) vm.Metrics {
	t.Helper()
	m, err := w.Metrics(t.Context(), access.Owner(owner), id)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// requireOnward checks that no counter went back, nor what it counts from.
func requireOnward(t *testing.T, first, second vm.Metrics) {
	t.Helper()
	if first.CountersSince == nil || second.CountersSince == nil || !first.CountersSince.Equal(*second.CountersSince) {
		t.Errorf("the counters count from %v, then from %v", first.CountersSince, second.CountersSince)
	}
	if second.CPUTime < first.CPUTime || second.Block.WriteBytes < first.Block.WriteBytes || second.Block.ReadBytes < first.Block.ReadBytes ||
		second.Traffic.RxBytes < first.Traffic.RxBytes || !second.CollectedAt.After(first.CollectedAt) {
		t.Errorf("went back from %+v to %+v", first, second)
	}
}

func TestMetricsContinueAcrossARestart(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	first := metricsOf(t, w, v.ID)
	if first.CPUTime <= 0 || first.Resident <= 0 || first.Block.ReadBytes == 0 || first.HostDisk != 4096 || first.Traffic.TxPackets != 4 {
		t.Errorf("got %+v", first)
	}
	if first.CPUPercent <= 0 || first.CPUPercent > 100 { // the fake uses a twentieth of a CPU
		t.Errorf("it uses %v %% of a CPU", first.CPUPercent)
	}
	if first.Guest != nil || first.Uptime < 0 || first.Uptime > time.Minute {
		t.Errorf("without an agent: %+v, up for %v", first.Guest, first.Uptime)
	}
	second := metricsOf(t, w, v.ID)
	requireOnward(t, first, second)
	w.shut(t)
	w.serve(t)
	requireOnward(t, second, metricsOf(t, w, v.ID))
}

func TestMetricsFromTheAgent(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{EnableNetwork: new(false)}})
	told := vm.GuestUsage{Uptime: time.Hour, MemTotal: 500 << 20, MemUsed: 100 << 20, Load: [3]float64{1, 2, 3}}
	w.guests.Usage = func(context.Context) (vm.GuestUsage, error) { return told, nil }
	m := metricsOf(t, w, v.ID)
	if m.Guest == nil || *m.Guest != told || m.Uptime != time.Hour || m.Traffic != (network.Traffic{}) {
		t.Errorf("got %+v, %+v", m.Guest, m)
	}
	told.MemTotal = 513 << 20 // more than the VM has
	if m := metricsOf(t, w, v.ID); m.Guest != nil {
		t.Errorf("a lie is passed on: %+v", m.Guest)
	}
	w.guests.Usage = func(context.Context) (vm.GuestUsage, error) { return vm.GuestUsage{}, errors.New("too old") }
	if m := metricsOf(t, w, v.ID); m.Guest != nil || m.CPUTime == 0 {
		t.Errorf("got %+v", m)
	}
}

func TestMetricsFromTheKernel(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{Overrides: machine.Overrides{EnableNetwork: new(false)}})
	w.driver.GuestMemory = vmm.GuestMemory{Total: 512 << 20, Available: 1 << 20}
	if m := metricsOf(t, w, v.ID); m.GuestMemory != w.driver.GuestMemory {
		t.Errorf("got %+v", m.GuestMemory)
	}
	w.driver.GuestMemory.Total++ // more than the VM has
	if m := metricsOf(t, w, v.ID); m.GuestMemory != (vmm.GuestMemory{}) {
		t.Errorf("a lie is passed on: %+v", m.GuestMemory)
	}
}

func TestMetricsDoNotWaitForAStoppedAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock goes on when all are idle
		w := newWorld(t)
		v := mustCreate(t, w, vm.CreateRequest{})
		w.guests.Usage = func(ctx context.Context) (vm.GuestUsage, error) {
			<-ctx.Done()
			return vm.GuestUsage{}, ctx.Err()
		}
		began := time.Now()
		if m := metricsOf(t, w, v.ID); m.Guest != nil || m.CPUTime == 0 {
			t.Errorf("got %+v", m)
		}
		if took := time.Since(began); took >= 2*time.Second {
			t.Errorf("it took %v", took)
		}
		if _, err := w.Pause(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
		w.guests.Usage = func(context.Context) (vm.GuestUsage, error) { panic("a paused guest was asked") }
		if m := metricsOf(t, w, v.ID); m.CPUTime == 0 {
			t.Errorf("of a paused VM: %+v", m)
		}
	})
}

func TestMetricsOfAVMThatIsNotRunning(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Stop(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	m := metricsOf(t, w, v.ID)
	if m.VM.State != vm.Stopped || m.HostDisk != 4096 || m.CollectedAt.IsZero() {
		t.Errorf("got %+v", m)
	}
	if m.CountersSince != nil || m.CPUTime != 0 || m.Resident != 0 || m.Uptime != 0 || m.Block.ReadBytes != 0 || m.Traffic.RxBytes != 0 || m.Guest != nil {
		t.Errorf("a stopped VM uses something: %+v", m)
	}
	before := time.Now().Add(-2 * time.Second)
	if _, err := w.Start(t.Context(), access.Owner(owner), v.ID); err != nil {
		t.Fatal(err)
	}
	if m := metricsOf(t, w, v.ID); m.CountersSince == nil || m.CountersSince.Before(before) {
		t.Errorf("after a start the counters count from %v", m.CountersSince)
	}
}

// However the moment falls, a VM whose machine ends is told as what it was or
// as what it is, and never with an error.
func TestMetricsWhileTheMachineEnds(t *testing.T) {
	w := newWorld(t)
	for range 10 {
		v := mustCreate(t, w, vm.CreateRequest{})
		go w.driver.Crash(v.ID)
		for state := vm.Running; state == vm.Running; {
			m := metricsOf(t, w, v.ID)
			if state = m.VM.State; state == vm.Failed && m.CPUTime != 0 {
				t.Errorf("a VM in error uses CPU: %+v", m)
			}
		}
		if err := w.Delete(t.Context(), access.Owner(owner), v.ID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMetricsAreForTheOwnerOnly(t *testing.T) {
	w := newWorld(t)
	v := mustCreate(t, w, vm.CreateRequest{})
	if _, err := w.Metrics(t.Context(), access.Owner("acc_other"), v.ID); !errs.Is(err, errs.NotFound) {
		t.Errorf("got %v", err)
	}
	w.calls.FailNext("Traffic")
	if _, err := w.Metrics(t.Context(), access.Owner(owner), v.ID); err == nil {
		t.Error("a counter that cannot be read is told as none")
	}
}
