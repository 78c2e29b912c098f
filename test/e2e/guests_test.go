//go:build system

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

// TestRealGuests is about Debian guests: what systemd, cloud-init and sshd see of
// a VM's life. Two of them serve many tests, because such a guest boots slowly
// where there is no hardware virtualization; the tests run in this order, those
// that change little of a guest first. Each can be run alone.
func TestRealGuests(t *testing.T) {
	newWorld(t, "debian", "minimal", "debian").runAll(t, []test{
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
		{"a fork under ssh is another machine, and reboots itself", testForkUnderSSH},
		{"hatchd is killed and adopts", testAdoptAfterKill},
		{"hatchd is stopped and adopts", testAdoptAfterStop},
		{"stop and start keep the disk", testStopStart},
		{"what begins during a reboot is done after it", testBeginDuringReboot},
		{"mime user data is applied", testMIME},
		{"user data that cannot be read is told", testUnreadUserData},
		{"a debian guest is kept booted", testWarmDebian},
		{"a program of E2B's library works", testE2B},
		{"the guest powers itself off", testPoweroff},
	})
}

// TestMinimalGuests is about guests of the minimal image: commands, files,
// metrics, limits.
func TestMinimalGuests(t *testing.T) {
	newWorld(t, "minimal", "minimal").runAll(t, []test{
		{"the vmm is killed", testVMMKilled},
		{"a vmm hangs", testHungVMM},
		{"a guest fills the host's disk", testFullDisk},
		{"hatchd has few descriptors", testFewDescriptors},
		{"vms have too little memory", testScarceMemory},
		{"vms have too few processes", testScarceTasks},
		{"the file system of guests' memory is full", testFullMemoryDisk},
		{"the database is away", testDatabaseAway},
		{"a long pause does not put the clock back", testLongPause},
		{"a guest that boots is stopped by itself", testStopDuringBoot},
		{"what begins during a reboot is done after it", testBeginDuringRebootMinimal},
		{"delete leaves nothing", testDelete},
		{"events tell what a guest does", testEvents},
		{"users have nothing of each other", testUsers},
		{"no network", testNoNetwork},
		{"hatch run ends in scripts", testRunInScripts},
		{"exec", testExec},
		{"files", testFiles},
		{"a file of 128 MiB", testLargeFile},
		{"freed memory is the host's again", testReclaim},
		{"freed space is the host's again", testTrim},
		{"disks are held to their limits", testLimits},
		{"the network is held to its limits", testNetworkLimits},
		{"metrics are the guest's and the host's", testMetrics},
		{"waiting without a network", testWaitWithoutNetwork},
		{"a service is reached through every door", testService},
		{"a kernel of the user's own", testOwnKernel},
		{"each root file system boots with each kernel", testMatrix},
		{"a vmm that died while hatchd was away", testDiedMeanwhile},
		{"twenty at once", testTwenty},
		{"a create that fails leaves nothing", testFailedCreates},
	})
}

// TestSnapshots is about the memory of guests: sleep, snapshots, forks, warm
// guests, and what is left of them when hatchd is killed.
func TestSnapshots(t *testing.T) {
	newWorld(t, "snapshots", "minimal").runAll(t, []test{
		{"sleep and wake", testSleep},
		{"a guest that boots can sleep", testSleepDuringBoot},
		{"who reaches into a sleeping guest wakes it", testWakeOnDemand},
		{"snapshots and forks", testSnapshots},
		{"a guest is kept booted", testWarm},
		{"what had to boot is kept booted", testWarmAuto},
		{"hatchd is killed during an operation", testKilledOperations},
		{"a data directory is restored from a backup", testBackup},
	})
}

// test is one of the subtests that share a world.
type test struct {
	name string
	run  func(*testing.T, *world)
}

// runAll runs tests, and checks that nothing is left of them on the host. It appends
// how long they took to .cache/e2e/times, with their CPU time: the sandboxes share few
// CPUs, and most tests wait.
func (w *world) runAll(t *testing.T, tests []test) {
	t.Helper()
	dir := filepath.Join(repository(), ".cache", "e2e")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	times, err := os.OpenFile(filepath.Join(dir, "times"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = times.Close() }()
	empty := w.traces(t)
	for _, test := range tests {
		began, cpu := time.Now(), sandbox.CPUTime()
		t.Run(test.name, func(t *testing.T) { test.run(t, w) })
		fmt.Fprintf(times, "%-60s %6.1f s, %6.1f s of CPU\n", t.Name()+"/"+test.name, time.Since(began).Seconds(), (sandbox.CPUTime() - cpu).Seconds())
	}
	w.deleteShared(t)
	w.requireTraces(t, empty)
}

// guest is a Debian VM that several tests use.
type guest struct {
	vm    api.VM
	err   error
	ready chan struct{} // closed once vm or err is set
}

// The shared guests, and their user data.
const (
	alpha = "alpha" // cloud-config; it boots
	beta  = "beta"  // shell script, and a hostname of its own; a clone of a warm guest

	betaHost = "Beta-1"
)

// shared returns a shared guest once it is ready. The first call makes both of them,
// at the same time.
func (w *world) shared(t *testing.T, name string) api.VM {
	t.Helper()
	w.begin(alpha, w.debian(cloudConfig))
	body := w.debian(shellScript)
	body.Hostname, body.ImageID = new(betaHost), warmImage
	w.begin(beta, body)
	w.mu.Lock()
	g := w.guests[name]
	w.mu.Unlock()
	<-g.ready
	if g.err != nil {
		t.Fatalf("there is no guest %s: %v", name, g.err)
	}
	v := w.get(t, g.vm.ID)
	if v.State != api.StateRunning {
		t.Fatalf("after an earlier test the guest %s is %s (%s), not running", name, v.State, v.StateReason)
	}
	return v
}

// begin starts to make a shared guest, once.
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
		if body.ImageID == warmImage {
			if g.err = w.warmDebian(); g.err != nil {
				return
			}
		}
		g.vm, g.err = w.client.CreateVM(ctx, body, client.CreateOptions{})
		if g.err == nil {
			_, g.err = w.client.WaitVM(ctx, g.vm.ID, "ready", readyLimit)
		}
	}()
}

// warmImage is a copy of the default image of which a guest is kept booted: tests that
// are not about a boot begin with clones of it, which are ready in seconds.
const warmImage = "img_warm_debian"

// makeWarmImage registers the image, and boots its warm guest.
func (w *world) makeWarmImage() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyLimit)
	defer cancel()
	image, err := w.copyImage(ctx, api.DefaultImageID, warmImage)
	if err != nil {
		return err
	}
	if image, err = w.client.WarmImage(ctx, image.ID, api.WarmImage{MemMiB: new(debianMem)}); err != nil {
		return err
	}
	return sandbox.Poll(readyLimit, func() (bool, error) {
		image, err = w.client.GetImage(ctx, image.ID)
		if err != nil {
			return false, err
		}
		ready := false
		for _, g := range image.Warm { // one that has just been built may be in the list twice
			switch g.State {
			case api.WarmFailed:
				return false, errors.New(g.Reason)
			case api.WarmBuilding:
				return false, nil
			default:
				ready = true
			}
		}
		return ready, nil
	})
}

// deleteShared deletes the shared guests, and the image of the warm one.
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
	err := w.client.DeleteImage(context.Background(), warmImage)
	if err != nil && !client.IsNotFound(err) {
		t.Errorf("cannot delete the image %s: %v", warmImage, err)
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

// took logs how long a step took.
func took(t *testing.T, what string, began time.Time) {
	t.Helper()
	t.Logf("%s: %.1f s", what, time.Since(began).Seconds())
}
