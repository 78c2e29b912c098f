//go:build system

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// The size of the disk before a snapshot, and during it: less than the guest's
// ballast.
const (
	largeEnough = "size=4g"
	tooSmall    = "size=16m"
)

// testSnapshotOnFullDisk fills the disk during a snapshot: the guest runs on,
// nothing is left, and snapshots work again once there is space.
func testSnapshotOnFullDisk(t *testing.T, g *countingGuest) {
	g.deleteSnapshots(t)
	uncover := cover(t, "tmpfs", g.data("snapshots"), "tmpfs", 0, largeEnough+",mode=700")
	counter, before := g.increment(t, g.vm), g.traces(t)
	shrunk := shrinkWhenUsed(t, g.data("snapshots"))
	_, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, api.CreateSnapshot{})
	if err := <-shrunk; err != nil {
		t.Fatal(err)
	}
	var answer *client.Error
	if !errors.As(err, &answer) || answer.Problem.Status != http.StatusInsufficientStorage || answer.Problem.Code != "disk_full" {
		t.Errorf("a snapshot on a disk that becomes full is answered with %v", err)
	}
	t.Log(err)
	g.requireUnharmed(t, counter)
	g.requireSnapshots(t, nil)
	g.requireTraces(t, before)
	uncover()
	snap := g.snapshot(t, api.CreateSnapshot{})
	g.restore(t, snap.ID)
	g.requireUnharmed(t, counter+1)
	g.deleteSnapshots(t)
}

// shrinkWhenUsed makes a tmpfs small as soon as a file is made in it.
func shrinkWhenUsed(t *testing.T, dir string) <-chan error {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_CREATE)
	}
	if err != nil {
		t.Fatalf("cannot watch %s: %v", dir, err)
	}
	shrunk := make(chan error, 1)
	go func() {
		defer unix.Close(fd)
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(normalReply.Milliseconds()))
		if n != 1 {
			shrunk <- fmt.Errorf("no file was made in %s", dir)
			return
		}
		shrunk <- unix.Mount("", dir, "", unix.MS_REMOUNT, tooSmall)
	}()
	return shrunk
}
