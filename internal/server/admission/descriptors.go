package admission

import (
	"math"
	"syscall"
)

// keptDescriptors are left for what requests do, such as to stop a VM; it is at most a
// part of the process's limit.
const (
	keptDescriptors = 512
	keptPart        = 4
)

// Descriptors returns how many file descriptors this process may have.
func Descriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt // only an invalid request fails
	}
	return int(min(limit.Cur, math.MaxInt))
}

// LeavesDescriptors reports whether enough file descriptors are left for what requests
// do, with one that was opened just now. The kernel gives the lowest free number, so
// that a high number says how many are in use.
func LeavesDescriptors(opened syscall.Conn) bool {
	limit := Descriptors()
	raw, err := opened.SyscallConn()
	if err != nil {
		return true // closed already
	}
	leaves := true
	_ = raw.Control(func(fd uintptr) { leaves = fd < uintptr(limit-min(limit/keptPart, keptDescriptors)) }) // as above
	return leaves
}
