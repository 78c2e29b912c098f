//go:build system

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// testKeepAwake asks from inside a guest to keep it awake.
func (s *service) testKeepAwake(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"hatch-agent keep-awake", "not kept awake"},
		{"hatch-agent keep-awake 10m", "kept awake for 10m0s"},
		{"hatch-agent keep-awake 25h 2>&1 || true", `hatch-agent: the duration is "25h"; it must be from 0 to 24h0m0s, such as 90s, 10m or 1h30m`},
		{"hatch-agent keep-awake 0", "not kept awake"},
		{"rm -f /run/hatch/hatch-agent 2>/dev/null || echo refused", "refused"},
	} {
		if got := s.inside(t, s.inner, c.line); got != c.want {
			t.Errorf("%s: %q, want %q", c.line, got, c.want)
		}
	}
	r, err := s.client.RunExec(t.Context(), s.inner.ID, api.RunExec{User: "1234", Command: api.Command{Argv: []string{"hatch-agent", "keep-awake", "2h"}}})
	if err != nil || strings.TrimSpace(r.Stdout) != "kept awake for 2h0m0s" {
		t.Errorf("any user may ask: %+v, %v", r, err)
	}
}

// setIdle lets the guest sleep after some seconds without a use, or never with 0. What it
// does by itself does not count: how much CPU an emulated guest needs is not fixed.
func (s *service) setIdle(t *testing.T, timeout time.Duration) {
	t.Helper()
	_, err := s.client.UpdateVM(t.Context(), s.vm.ID, api.UpdateVM{Idle: &api.Idle{
		TimeoutSeconds: new(int64(timeout / time.Second)), CPUPercent: new(0), NetworkBytes: new(int64(0)),
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// testIdle has a guest fall asleep by its policy while it is only read, wakes it by a
// command, and sees that a command that waits keeps it awake.
func (s *service) testIdle(t *testing.T) {
	const timeout = 2 * time.Second
	s.setIdle(t, timeout)
	defer s.setIdle(t, 0)
	times, woken := s.slept(t), s.wakes(t, s.vm)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(readyLimit); s.readOnly(t).State == api.StateRunning; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("it does not fall asleep: %+v", s.get(t, s.vm.ID))
		}
	}
	s.requireSlept(t, times+1, normalReply)
	if now := s.readOnly(t); now.Sleep == nil || now.LastActivity == nil {
		t.Errorf("asleep it is %+v (%s)", now, now.StateReason)
	}

	s.inside(t, s.vm, fmt.Sprintf("sleep %g", 3*timeout.Seconds()))
	if s.slept(t)-times != 1 || s.wakes(t, s.vm)-woken != 1 {
		t.Errorf("it fell asleep %d times, and was woken %d times", s.slept(t)-times, s.wakes(t, s.vm)-woken)
	}
	if now := s.get(t, s.vm.ID); now.LastActivity == nil || now.LastActivity.Cause != "exec" || now.LastActivity.Peer == "" {
		t.Errorf("its last activity is %+v", now.LastActivity)
	}
	s.requireSlept(t, times+2, readyLimit)
	s.requireUnharmed(t)
}

// readOnly reads what a dashboard reads, and returns the VM.
func (s *service) readOnly(t *testing.T) api.VM {
	t.Helper()
	if _, err := s.client.VMMetrics(t.Context(), s.vm.ID); err != nil && !client.HasCode(err, "vm_not_running") {
		t.Errorf("metrics: %v", err)
	}
	for _, err := range s.client.ListEvents(t.Context(), client.EventOptions{VM: s.vm.ID}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for v, err := range s.client.ListVMs(t.Context(), client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if v.ID == s.vm.ID {
			return s.get(t, v.ID)
		}
	}
	t.Fatal("the list lacks the VM")
	return api.VM{}
}

// testDownloadKeepsAwake has a slow download last longer than several idle timeouts.
func (s *service) testDownloadKeepsAwake(t *testing.T) {
	timeout, lasts := 2*time.Second, 9*time.Second
	if long {
		timeout, lasts = time.Minute, 10*time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*lasts)
	defer cancel()
	s.setIdle(t, timeout)
	defer s.setIdle(t, 0)
	times, woken := s.slept(t), s.wakes(t, s.vm)
	const pause = 200 * time.Millisecond
	size := int64(lasts/pause) << 10 // the guest sends 1 KiB before each pause
	began := time.Now()
	resp, err := s.fetch(ctx, http.MethodGet, fmt.Sprintf("/source?bytes=%d&pause=%s", size, pause), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size || time.Since(began) < lasts/2 {
		t.Errorf("got %d of %d bytes in %s, %v", n, size, time.Since(began), err)
	}
	if s.slept(t) != times || s.wakes(t, s.vm)-woken > 1 {
		t.Errorf("meanwhile it fell asleep %d times, and was woken %d times", s.slept(t)-times, s.wakes(t, s.vm)-woken)
	}
	took(t, "a download from a guest that sleeps after "+timeout.String(), began)
	s.requireSlept(t, times+1, timeout+readyLimit)
}

// requireSlept waits until the guest has fallen asleep by its policy so often. The event
// that tells comes after the state.
func (s *service) requireSlept(t *testing.T, times int, limit time.Duration) {
	t.Helper()
	if err := sandbox.Poll(limit, func() (bool, error) { return s.slept(t) == times, nil }); err != nil {
		now := s.get(t, s.vm.ID)
		t.Fatalf("it fell asleep by its policy %d times, want %d; it is %s (%s): %v", s.slept(t), times, now.State, now.StateReason, err)
	}
}

// slept returns how often the guest fell asleep by its policy.
func (s *service) slept(t *testing.T) (times int) {
	t.Helper()
	for e, err := range s.client.ListEvents(t.Context(), client.EventOptions{VM: s.vm.ID, Types: []string{"vm.slept"}}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Data["rule"] == "idle" {
			times++
		}
	}
	return times
}
