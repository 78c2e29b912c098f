//go:build system

package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// TestRealGuests runs in this order because a Debian guest takes its time to
// boot where there is no hardware virtualization: several tests share one, the
// gentle ones first. Any of them can be run alone.
func TestRealGuests(t *testing.T) {
	w := newWorld(t)
	empty := w.look(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"cloud-config is applied", testCloudConfig},
		{"a shell script is applied", testShellScript},
		{"guests have distinct addresses", testDistinct},
		{"a guest reaches the internet", testInternet},
		{"a guest reaches nothing else", testIsolation},
		{"a guest cannot take another address", testSpoofing},
		{"the ssh port is for allowed clients", testAllowedClients},
		{"the command line works", testCommandLine},
		{"cloud-init's log is read", testCloudInitLog},
		{"commands run under systemd", testExecUnderSystemd},
		{"pause and resume", testPause},
		{"an ssh session goes on after a sleep", testSleepUnderSSH},
		{"a fork under ssh is another machine", testForkUnderSSH},
		{"hatchd is killed and adopts", testAdoptAfterKill},
		{"hatchd is stopped and adopts", testAdoptAfterStop},
		{"stop and start keep the disk", testStopStart},
		{"the guest reboots itself", testReboot},
		{"the guest powers itself off", testPoweroff},
		{"mime user data is applied", testMIME},
		{"the vmm is killed", testVMMKilled},
		{"delete leaves nothing", testDelete},
		{"events tell what a guest does", testEvents},
		{"no network", testNoNetwork},
		{"exec", testExec},
		{"files", testFiles},
		{"a file of 1 GiB", testLargeFile},
		{"sleep and wake", testSleep},
		{"who reaches into a sleeping guest wakes it", testRouse},
		{"snapshots and forks", testSnapshots},
		{"freed memory is the host's again", testReclaim},
		{"disks are held to their limits", testLimits},
		{"the network is held to its limits", testNetworkLimits},
		{"metrics are the guest's and the host's", testMetrics},
		{"waiting without a network", testWaitWithoutNetwork},
		{"a kernel of the user's own", testOwnKernel},
		{"a vmm that died while hatchd was away", testDiedMeanwhile},
		{"a guest is kept booted", testWarm},
		{"what had to boot is kept booted", testWarmByItself},
		{"a debian guest is kept booted", testWarmDebian},
		{"twenty at once", testTwenty},
		{"a create that fails leaves nothing", testFailedCreates},
		{"hatchd is killed amid copies", testKillsAmidCopies},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, w) })
	}
	w.deleteShared(t)
	w.requireOnly(t, empty)
}

// guest is a Debian VM that several tests use.
type guest struct {
	vm    api.VM
	err   error
	ready chan struct{} // closed when vm or err is there
}

// The shared guests, and the user data each is made with.
const (
	alpha = "alpha" // cloud-config
	beta  = "beta"  // shell script
)

// shared returns a shared guest that is ready, and makes it when this is the
// first test that wants it. Both boot at the same time.
func (w *world) shared(t *testing.T, name string) api.VM {
	t.Helper()
	w.begin(alpha, w.debian(cloudConfig))
	w.begin(beta, w.debian(shellScript))
	w.mu.Lock()
	g := w.guests[name]
	w.mu.Unlock()
	<-g.ready
	if g.err != nil {
		t.Fatalf("there is no guest %s: %v", name, g.err)
	}
	v := w.get(t, g.vm.ID)
	if v.State != api.StateRunning {
		t.Fatalf("the guest %s is %s (%s), not running, after an earlier test", name, v.State, v.StateReason)
	}
	return v
}

// begin starts making a shared guest, once.
func (w *world) begin(name string, body api.CreateVM) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.guests[name] != nil {
		return
	}
	g := &guest{ready: make(chan struct{})}
	w.guests[name] = g
	body.Name = name
	go func() {
		defer close(g.ready)
		ctx, cancel := context.WithTimeout(context.Background(), 2*readyLimit)
		defer cancel()
		g.vm, g.err = w.client.CreateVM(ctx, body, client.CreateOptions{})
		if g.err == nil {
			_, g.err = w.client.WaitVM(ctx, g.vm.ID, "ready", readyLimit)
		}
	}()
}

// deleteShared ends the shared guests.
func (w *world) deleteShared(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, g := range w.guests {
		<-g.ready
		if g.vm.ID != "" {
			w.cleanUp(t, g.vm.ID)
		}
		delete(w.guests, name)
	}
}

// condition returns a condition of the VM.
func condition(v api.VM, kind string) api.Condition {
	for _, c := range v.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return api.Condition{}
}

// took logs how long something took.
func took(t *testing.T, what string, began time.Time) {
	t.Helper()
	t.Logf("%s: %.1f s", what, time.Since(began).Seconds())
}
