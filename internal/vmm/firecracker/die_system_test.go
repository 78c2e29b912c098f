//go:build linux && amd64 && system

package firecracker

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// A daemon that is killed during a start cannot clean up: the next daemon must.

// dyingDaemon is the environment variable that makes the test binary start the machine
// encoded in it, and then wait to be killed.
const dyingDaemon = "HATCH_TEST_START_AND_DIE"

func TestADaemonThatDiesDuringAStartLeavesNothingToTheNext(t *testing.T) {
	if spec := os.Getenv(dyingDaemon); spec != "" {
		startUntilKilled(t, spec)
		return
	}
	l := newLab(t, false)
	alive := 0
	for after := time.Duration(0); after < 40*time.Millisecond; after += time.Millisecond {
		s := l.spec(t)
		killDuringStart(t, s, after)
		d := l.driver(t)
		alive += endAll(t, d, l.root)
		if left := leftovers(s); len(left) > 0 {
			t.Errorf("left by a daemon that was killed after %v: %v", after, left)
		}
		m, err := d.Start(t.Context(), s) // and it can be started
		if err != nil {
			t.Fatalf("killed after %v: %v", after, err)
		}
		if err := m.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d of 40 machines were alive", alive)
	if alive == 0 || alive == 40 {
		t.Errorf("%d of 40 machines were alive: the test's delays do not end before and after a start", alive)
	}
}

func startUntilKilled(t *testing.T, encoded string) {
	var s vmm.Spec
	if err := json.Unmarshal([]byte(encoded), &s); err != nil {
		t.Fatal(err)
	}
	l := &lab{}
	d := l.driver(t)
	fmt.Println("starting") //nolint:forbidigo // to the test that waits for it
	if _, err := d.Start(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	<-t.Context().Done()
	<-context.Background().Done()
}

// killDuringStart runs a daemon that starts a machine, and kills it the time after
// later.
func killDuringStart(t *testing.T, s vmm.Spec, after time.Duration) {
	t.Helper()
	encoded, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("/proc/self/exe", "-test.run", "^TestADaemonThatDiesDuringAStartLeavesNothingToTheNext$")
	daemon.Env = append(os.Environ(), dyingDaemon+"="+string(encoded))
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	<-time.After(after)
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait()
}

// endAll reaps all machines below root, and returns how many there were.
func endAll(t *testing.T, d *Driver, root string) (ended int) {
	t.Helper()
	found, err := d.List(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range found {
		m, err := d.Adopt(t.Context(), h)
		if errs.Is(err, errs.NotFound) {
			continue // it was not configured yet: Adopt has killed it
		}
		if err != nil {
			t.Fatalf("a listed machine cannot be adopted: %v", err)
		}
		if err := m.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	return len(found)
}
