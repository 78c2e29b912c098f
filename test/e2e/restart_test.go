//go:build system

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// requireReached checks that each name and port leads to the guest.
func (s *service) requireReached(t *testing.T) {
	t.Helper()
	if err := s.well(t.Context()); err != nil {
		t.Errorf("through its route: %v", err)
	}
	if got, err := s.visit(t.Context(), implicit(s.vm, 8081), http.MethodGet, "/health", nil); err != nil || got.status != http.StatusOK {
		t.Errorf("by its implicit name: %d, %v", got.status, err)
	}
	requirePage(t, "127.0.0.1", onePort)
	requirePage(t, "127.0.0.2", twoPort)
}

// testRestarts restarts hatchd above a guest that runs, one that sleeps, and one whose
// time passes meanwhile.
func (s *service) testRestarts(t *testing.T) {
	const timeout = 3 * time.Second
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			s.requireReached(t)
			s.setIdle(t, timeout)
			at := api.Time{Time: time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond)}
			s.expireAt(t, &at)
			times := s.slept(t)
			s.restart(t, signal)
			s.requireReached(t)
			if now := s.get(t, s.vm.ID); now.Idle == nil || *now.Idle.TimeoutSeconds != int64(timeout.Seconds()) || now.ExpiresAt == nil || !now.ExpiresAt.Equal(at.Time) || now.ExpireAction != "sleep" {
				t.Errorf("it has %+v, and expires at %v (%s)", now.Idle, now.ExpiresAt, now.ExpireAction)
			}
			s.requireSlept(t, times+1, readyLimit)

			s.restart(t, signal)
			s.requireReached(t)
			s.requireUnharmed(t)

			s.setIdle(t, 0)
			s.requireExpiryMeanwhile(t, signal)
		})
	}
}

// requireExpiryMeanwhile lets the guest's time pass while no hatchd runs.
func (s *service) requireExpiryMeanwhile(t *testing.T, signal syscall.Signal) {
	t.Helper()
	before, at := s.expiries(t), time.Now().Add(time.Second)
	s.expireAt(t, &api.Time{Time: at.UTC()})
	s.stopDaemon(t, signal)
	<-time.After(time.Until(at))
	s.startRecovered(t)
	s.await(t, s.vm.ID, "snapshotted", readyLimit)
	if err := sandbox.Poll(normalReply, func() (bool, error) { return s.expiries(t) == before+1, nil }); err != nil {
		t.Errorf("%d events tell of its expiry, %d before: %v", s.expiries(t), before, err)
	}
	if now := s.get(t, s.vm.ID); now.ExpiresAt != nil {
		t.Errorf("it has expired, and does so again at %v", now.ExpiresAt)
	}
	s.requireUnharmed(t)
}

// expireAt sets when the guest falls asleep in any case.
func (s *service) expireAt(t *testing.T, at *api.Time) {
	t.Helper()
	if _, err := s.client.UpdateVM(t.Context(), s.vm.ID, api.UpdateVM{ExpiresAt: at, ExpireAction: new("sleep")}); err != nil {
		t.Fatal(err)
	}
}

// expiries counts how often the guest's time has passed.
func (s *service) expiries(t *testing.T) (times int) {
	t.Helper()
	for _, err := range s.client.ListEvents(t.Context(), client.EventOptions{VM: s.vm.ID, Types: []string{"vm.expired"}}) {
		if err != nil {
			t.Fatal(err)
		}
		times++
	}
	return times
}

// testKilledFallingAsleep kills hatchd at several moments of a sleep by the guest's policy.
func (s *service) testKilledFallingAsleep(t *testing.T) {
	saved := s.data("vms", s.vm.ID, "sleep")
	exists := func(path string) func() (bool, error) {
		return func() (bool, error) { _, err := os.Stat(path); return err == nil, nil }
	}
	for _, moment := range []struct {
		name  string
		comes func() (bool, error)
	}{
		{"its devices are being saved", exists(saved)},
		{"its state is saved", exists(filepath.Join(saved, "manifest.json"))},
		{"it is stored that it sleeps", func() (bool, error) {
			v, err := s.client.GetVM(t.Context(), s.vm.ID)
			return v.State == api.StateSnapshotted, err
		}},
	} {
		t.Run(moment.name, func(t *testing.T) {
			s.requireReached(t)
			s.setIdle(t, time.Second)
			if err := pollFast(readyLimit, moment.comes); err != nil {
				t.Fatal(err)
			}
			s.stopDaemon(t, syscall.SIGKILL)
			s.startRecovered(t)
			t.Logf("after the kill it is %s", s.stable(t, s.vm.ID).State)
			s.setIdle(t, 0)
			s.requireReached(t)
			s.requireUnharmed(t)
		})
	}
}

// pollFast is sandbox.Poll for what lasts milliseconds only.
func pollFast(limit time.Duration, ask func() (bool, error)) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); ; <-tick.C {
		if ok, err := ask(); ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %s", limit)
		}
	}
}

// testKilledWaking kills hatchd at several moments of a wake by a request.
func (s *service) testKilledWaking(t *testing.T) {
	s.sleep(t, s.vm)
	began := time.Now()
	if err := s.well(t.Context()); err != nil {
		t.Fatal(err)
	}
	undisturbed := time.Since(began)
	const kills = 4
	for i := range kills {
		s.sleep(t, s.vm)
		after := undisturbed * time.Duration(i) / (kills - 1)
		during(t, after, func(ctx context.Context) { _ = s.well(ctx) }, func() { s.stopDaemon(t, syscall.SIGKILL) })
		s.startRecovered(t)
		t.Logf("killed %s after the request (undisturbed it takes %s) it is %s", after.Round(time.Millisecond), undisturbed.Round(time.Millisecond), s.stable(t, s.vm.ID).State)
		s.requireReached(t)
		s.requireUnharmed(t)
	}
}
