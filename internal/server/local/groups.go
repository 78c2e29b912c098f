package local

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxGroups is the number of groups that a process of Linux can have.
const maxGroups = 1 << 16

// peerGroups returns the supplementary groups of the peer.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && len(groups) < maxGroups: // size is what it needs
			groups = make([]uint32, maxGroups)
		default:
			return nil, errno
		}
	}
}
