package agent

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/sshtrust"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// TrustSSH implements [wire.SSHTrustHandler].
func (a *Agent) TrustSSH(trust wire.SSHTrust) error {
	if err := sshtrust.Write("/", trust); err != nil {
		return err
	}
	a.status.setSSH(sshtrust.State("/"))
	return nil
}

// watchHostKeys updates the status with the guest's host keys, now and after each change:
// cloud-init makes them during the first boot.
func (a *Agent) watchHostKeys(ctx context.Context, root string) {
	a.status.setSSH(sshtrust.State(root))
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		a.log.Error("cannot watch the host keys", logkey.Error, err)
		return
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer func() { _ = events.Close() }()
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(root, "etc/ssh"), changes); err != nil {
		return // the image has no sshd
	}
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Now()) })
	defer stop()
	buf := make([]byte, 64*(unix.SizeofInotifyEvent+unix.NAME_MAX+1))
	for {
		a.status.setSSH(sshtrust.State(root))
		if _, err := events.Read(buf); err != nil {
			return
		}
	}
}
