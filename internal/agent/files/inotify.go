package files

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// inotify is an inotify instance, with a buffer for its events.
type inotify struct {
	file *os.File
	fd   int
	buf  []byte
}

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return nil, errTooManyWatches
	}
	if err != nil {
		return nil, err
	}
	return &inotify{file: os.NewFile(uintptr(fd), "inotify"), fd: fd, buf: make([]byte, 64<<10)}, nil
}

func (n *inotify) close() { _ = n.file.Close() }

var errTooManyWatches = wire.Refuse(wire.CodeTooManyWatches,
	"the guest has reached its limit of watches (fs.inotify.max_user_watches or max_user_instances)")

func (n *inotify) add(path string, mask uint32) (int32, error) {
	wd, err := unix.InotifyAddWatch(n.fd, path, mask)
	if errors.Is(err, unix.ENOSPC) {
		return 0, errTooManyWatches
	}
	return int32(wd), err
}

func (n *inotify) remove(wd int32) { _, _ = unix.InotifyRmWatch(n.fd, uint32(wd)) }

// event is one inotify event.
type event struct {
	wd     int32
	mask   uint32
	cookie uint32
	name   string // in the watched directory; "" for the directory itself
}

// wake interrupts a read, and makes later ones fail.
func (n *inotify) wake() { _ = n.file.SetReadDeadline(time.Unix(1, 0)) }

// read waits for events until the deadline; the zero time means no deadline.
func (n *inotify) read(deadline time.Time, cancelled func() error) ([]event, error) {
	_ = n.file.SetReadDeadline(deadline)
	if err := cancelled(); err != nil {
		return nil, err // SetReadDeadline may have undone a wake
	}
	size, err := n.file.Read(n.buf)
	if err != nil {
		return nil, err
	}
	return parseEvents(n.buf[:size]), nil
}

// parseEvents parses the events that the kernel has written.
func parseEvents(raw []byte) []event {
	var events []event
	for len(raw) >= unix.SizeofInotifyEvent {
		size := int(binary.NativeEndian.Uint32(raw[12:]))
		if size > len(raw)-unix.SizeofInotifyEvent {
			break
		}
		name := raw[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+size]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		events = append(events, event{
			wd: int32(binary.NativeEndian.Uint32(raw)), mask: binary.NativeEndian.Uint32(raw[4:]),
			cookie: binary.NativeEndian.Uint32(raw[8:]), name: string(name),
		})
		raw = raw[unix.SizeofInotifyEvent+size:]
	}
	return events
}
