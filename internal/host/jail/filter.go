//go:build linux && amd64

package jail

import (
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// refused are system calls that fail with EPERM in a filtered process. No VMM that is
// given its files needs them, and each reaches other processes, the host, or a part of
// its kernel that programs without privileges can rarely attack otherwise.
var refused = []uint32{
	// Sockets, also those that no network namespace confines, such as of vsock. io_uring
	// could make them past this filter.
	unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_CONNECT, unix.SYS_BIND,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	// Other processes.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_KCMP,
	// Mounts, and files by handle.
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT,
	unix.SYS_FSOPEN, unix.SYS_FSPICK, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT,
	// The kernel: its log, keys, programs in it, and what makes its errors easy to use.
	unix.SYS_SYSLOG, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_MODIFY_LDT,
}

// fatal are system calls that end a filtered process, all its threads. QEMU's own filter,
// at least until 7.2, ends the thread that makes one of these, or a call of another
// ABI: a machine without its main thread hangs, and no exit of it is reported.
var fatal = []uint32{unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_EXECVEAT}

// refusedControls are requests of ioctl that fail with EPERM. The first reserve blocks
// beyond the end of a file, which no limit of its size forbids. The others change a TAP
// that the process was given: whom it belongs to, whether it stays, and its MAC, for
// which the bridge would then hold back the frames of another machine.
var refusedControls = []uint32{
	0x40305828, 0x4030582a, 0x40305839, // FS_IOC_RESVSP, FS_IOC_RESVSP64, FS_IOC_ZERO_RANGE
	unix.TUNSETIFF, unix.TUNSETPERSIST, unix.TUNSETOWNER, unix.TUNSETGROUP, unix.TUNSETLINK, unix.SIOCSIFHWADDR,
}

// allowedAllocations are the modes of fallocate that write zeros or free blocks. Others
// are not supported, as some file systems do not either: they reserve blocks beyond the
// end of a file, or make it longer than its limit.
var allowedAllocations = []uint32{0, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}

// Offsets in the kernel's struct seccomp_data, in bytes.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetFirst  = 16 // the low half of the first argument
	offsetSecond = 24
)

// x32 is the bit that marks system calls of the x32 ABI.
const x32 = 0x40000000

// The verdicts of the filter.
var (
	allow       = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	kill        = bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}
	refuse      = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	unsupported = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EOPNOTSUPP)}
)

// filter returns the program that refuses system calls. In another ABI than that of
// 64-bit programs they have other numbers: such a call ends the process, too.
func filter() ([]bpf.RawInstruction, error) {
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 1},
		kill,
		bpf.LoadAbsolute{Off: offsetNumber, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32, SkipTrue: 1},
		kill,
	}
	// The call that VMMs make most comes first.
	program = append(program, examine(unix.SYS_IOCTL, offsetSecond, append(answer(refusedControls, refuse), allow))...)
	program = append(program, answer(fatal, kill)...)
	program = append(program, answer(refused, refuse)...)
	program = append(program, examine(unix.SYS_CLONE, offsetFirst, []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: unix.CLONE_NEWUSER, SkipTrue: 1}, // in which it would have capabilities
		refuse,
		allow,
	})...)
	program = append(program, examine(unix.SYS_FALLOCATE, offsetSecond, append(answer(allowedAllocations, allow), unsupported))...)
	return bpf.Assemble(append(program, allow))
}

// answer gives the values that are in the list a verdict.
func answer(values []uint32, verdict bpf.Instruction) (program []bpf.Instruction) {
	for _, value := range values {
		program = append(program, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: 1}, verdict)
	}
	return program
}

// examine lets verdicts on an argument follow for one system call.
func examine(number, argument uint32, verdicts []bpf.Instruction) []bpf.Instruction {
	return append([]bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number, SkipTrue: uint8(len(verdicts) + 1)},
		bpf.LoadAbsolute{Off: argument, Size: 4},
	}, verdicts...)
}

// filterCalls sets the filter for the calling thread and what it executes. The thread
// must not be able to gain privileges.
func filterCalls() error {
	instructions, err := filter()
	if err != nil {
		return err
	}
	raw := make([]unix.SockFilter, len(instructions))
	for i, in := range instructions {
		raw[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	program := unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("cannot filter system calls: %w", errno)
	}
	return nil
}
