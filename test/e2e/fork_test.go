//go:build system

package e2e

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// forkCount is how many forks are made of one VM at once.
const forkCount = 8

func testFork(t *testing.T, g *countingGuest) {
	before := g.traces(t)
	g.inside(t, g.vm, "echo parent >/kept")
	n := g.increment(t, g.vm)
	end := g.drawWhenRenamed(t, g.vm)
	began := time.Now()
	made, err := g.client.ForkVM(t.Context(), g.vm.ID, api.ForkVM{Count: new(forkCount), Name: "child"})
	if err != nil {
		t.Fatal(err)
	}
	took(t, strconv.Itoa(forkCount)+" forks", began)
	for _, v := range made.VMs {
		t.Cleanup(func() { g.cleanUp(t, v.ID) })
	}
	if len(made.VMs) != forkCount || len(made.Failed) != 0 {
		t.Fatalf("made %d; failed are %+v", len(made.VMs), made.Failed)
	}
	end()
	all := append(slices.Clone(made.VMs), g.vm)
	requireDistinct(t, all)
	g.requireRightTime(t, all...)
	g.requireOwnDraws(t, g.vm, made.VMs)
	g.requireShared(t, made.VMs)
	for _, v := range made.VMs {
		g.requireIdentity(t, v)
		g.inside(t, v, "test $(cat /kept) = parent && echo "+v.Name+" >/kept; sync")
	}
	for i, v := range made.VMs {
		for by := range i + 1 {
			if got := g.increment(t, v); got != n+by+1 {
				t.Errorf("the counter of %s is %d, want %d", v.Name, got, n+by+1)
			}
		}
		if got := g.inside(t, v, "cat /kept"); got != v.Name {
			t.Errorf("the file of %s has %q", v.Name, got)
		}
	}
	g.requireUnharmed(t, n)
	if got := g.inside(t, g.vm, "cat /kept"); got != "parent" {
		t.Errorf("the parent's file has %q", got)
	}
	child := made.VMs[0]
	g.sleep(t, child)
	g.awaitDurable(t, child.ID)
	g.wake(t, child)
	if got := g.increment(t, child); got != n+2 {
		t.Errorf("after a sleep the counter of %s is %d, want %d", child.Name, got, n+2)
	}
	g.requireIdentity(t, child)
	for _, v := range made.VMs {
		g.delete(t, v.ID)
	}
	g.requireTraces(t, before)
}

// requireShared checks that clones have the parent's ballast, and, on QEMU, that they
// share it in the host's memory.
func (g *countingGuest) requireShared(t *testing.T, vms []api.VM) {
	t.Helper()
	const checksum = "md5sum /mem/ballast"
	ballast := g.inside(t, g.vm, checksum)
	for _, v := range vms {
		if got := g.inside(t, v, checksum); got != ballast {
			t.Errorf("the ballast of %s is %q, the parent's %q", v.Name, got, ballast)
		}
	}
	if vms[0].VMM == "firecracker" {
		return // each of its guests has a copy
	}
	var resident, proportional int // KiB
	for _, v := range vms {
		p := vmm(t, v)
		rss, pss := p.rollup(t, "Rss:"), p.rollup(t, "Pss:")
		resident, proportional = resident+rss, proportional+pss
	}
	t.Logf("the VMMs of %d clones have %d MiB resident, %d MiB when shared pages are divided among them", len(vms), resident>>10, proportional>>10)
	if least := (len(vms) - 1) * ballastMiB << 10; proportional == 0 || resident-proportional < least {
		t.Errorf("clones share %d KiB, want at least the %d of their ballast", resident-proportional, least)
	}
}

// testForkBeyondCapacity asks for more forks than the host has memory for, while a
// fork shares a base that an earlier hatchd has made. On Firecracker forks share none:
// only that of the new ones counts. It needs a host of less than 120 GiB.
func testForkBeyondCapacity(t *testing.T, g *countingGuest) {
	made, err := g.client.ForkVM(t.Context(), g.vm.ID, api.ForkVM{Name: "sharer"})
	if err != nil {
		t.Fatal(err)
	}
	sharer := made.VMs[0]
	t.Cleanup(func() { g.cleanUp(t, sharer.ID) })
	g.stopDaemon(t, syscall.SIGKILL)
	g.startDaemon(t, warmOff, "HATCH_MEM_OVERCOMMIT="+overcommit(t, 1536))
	defer func() {
		g.stopDaemon(t, syscall.SIGTERM)
		g.startDaemon(t, warmOff)
	}()
	counter, before := g.increment(t, g.vm), g.traces(t)
	_, err = g.client.ForkVM(t.Context(), g.vm.ID, api.ForkVM{Count: new(64)})
	if !client.HasCode(err, "memory_exhausted") {
		t.Fatalf("got %v", err)
	}
	t.Log(err)
	bases := 2 // of the new forks, and the sharer's
	if sharer.VMM == "firecracker" {
		bases = 1
	}
	if shared := sharedMiB.FindStringSubmatch(err.Error()); shared == nil {
		t.Error("it does not say how much clones share")
	} else if n, err := strconv.Atoi(shared[1]); err != nil || n < bases*ballastMiB {
		t.Errorf("clones share %s MiB", shared[1])
	}
	g.requireTraces(t, before)
	g.requireUnharmed(t, counter)
	if made, err = g.client.ForkVM(t.Context(), g.vm.ID, api.ForkVM{}); err != nil {
		t.Fatalf("there is memory for one: %v", err)
	}
	g.delete(t, made.VMs[0].ID)
	g.delete(t, sharer.ID)
}

// overcommit returns the setting that lets VMs have some memory, or what is nearest to it.
func overcommit(t *testing.T, mib int) string {
	t.Helper()
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		t.Fatal(err)
	}
	total := host.Totalram * uint64(host.Unit) >> 20
	return strconv.FormatFloat(max(0.1, float64(mib)/float64(total)), 'f', 3, 64)
}

// sharedMiB finds in a refusal how much memory clones share.
var sharedMiB = regexp.MustCompile(`shared clone memory (\d+) of`)

// requireIdentity checks that a guest has the name and the addresses of its VM,
// and reaches the internet with them.
func (w *world) requireIdentity(t *testing.T, v api.VM) {
	t.Helper()
	if got := w.inside(t, v, "hostname"); got != v.Name {
		t.Errorf("the hostname of %s is %q", v.Name, got)
	}
	if got := w.inside(t, v, "cat /sys/class/net/eth0/address"); !strings.EqualFold(got, v.GuestMAC) {
		t.Errorf("%s has the MAC %s, want %s", v.Name, got, v.GuestMAC)
	}
	if got := w.inside(t, v, "ip -4 addr show eth0"); !strings.Contains(got, "inet "+v.GuestIP+"/") {
		t.Errorf("%s does not have the address %s: %s", v.Name, v.GuestIP, got)
	}
	if got := w.inside(t, v, "nc -w 5 "+internetAddr+" 80 </dev/null"); got != "hello "+uplinkAddr {
		t.Errorf("the internet greets %s with %q", v.Name, got)
	}
}
