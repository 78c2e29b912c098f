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

// What is left of a disk amid a snapshot: less than the guest's ballast. Before it
// there is enough.
const (
	enoughRoom = "size=4g"
	littleRoom = "size=16m"
)

// testSnapshotOnFullDisk lets the disk become full once a snapshot has begun: the
// guest goes on, nothing is left, and with room there are snapshots again.
func testSnapshotOnFullDisk(t *testing.T, g *kept) {
	g.deleteSnapshots(t)
	uncover := cover(t, "tmpfs", g.data("snapshots"), "tmpfs", 0, enoughRoom+",mode=700")
	counted, before := g.countOn(t, g.vm), g.look(t)
	shrunk := shrinkWhenUsed(t, g.data("snapshots"))
	_, err := g.client.CreateSnapshot(t.Context(), g.vm.ID, api.CreateSnapshot{})
	if err := <-shrunk; err != nil {
		t.Fatal(err)
	}
	var answer *client.Error
	if !errors.As(err, &answer) || answer.Problem.Status != http.StatusInsufficientStorage || answer.Problem.Code != "disk_full" {
		t.Errorf("on a disk that becomes full a snapshot is answered %v", err)
	}
	t.Log(err)
	g.requireUnharmed(t, counted)
	g.requireSnapshots(t, nil)
	g.requireOnly(t, before)
	uncover()
	one := g.take(t, api.CreateSnapshot{})
	g.restore(t, one.ID)
	g.requireUnharmed(t, counted+1)
	g.deleteSnapshots(t)
}

// shrinkWhenUsed makes a tmpfs small as soon as something is made in it.
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
			shrunk <- fmt.Errorf("nothing is made in %s", dir)
			return
		}
		shrunk <- unix.Mount("", dir, "", unix.MS_REMOUNT, littleRoom)
	}()
	return shrunk
}
