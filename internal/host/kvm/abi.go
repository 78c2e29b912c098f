//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Request numbers of KVM's ioctls, from linux/kvm.h on amd64.
const (
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSRegs            = 0x8138ae83
	kvmSetSRegs            = 0x4138ae84
)

// memoryRegion is struct kvm_userspace_memory_region.
type memoryRegion struct {
	Slot, Flags  uint32
	GuestAddress uint64
	Size         uint64
	Address      uint64
}

// generalRegisters is struct kvm_regs.
type generalRegisters struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64
}

// segment is struct kvm_segment.
type segment struct {
	Base     uint64
	Limit    uint32
	Selector uint16
	Rest     [10]byte
}

// specialRegisters is struct kvm_sregs; only CS is used.
type specialRegisters struct {
	CS   segment
	Rest [312 - 24]byte
}

// Offsets in struct kvm_run; the details of an exit are a union at byte 32.
const (
	runImmediateExit = 1
	runReason        = 8
	runSuberror      = 32
	runPort          = 34
	runHeader        = 64
)

// runTimeout bounds the guest's run. It needs a few microseconds, but up to 0.8 s
// where KVM itself is emulated.
const runTimeout = 5 * time.Second

// createTries bounds how often the creation of a machine is begun.
const createTries = 1000

// enter runs the CPU until it exits, or for runTimeout: then the thread gets a
// signal that Go's runtime ignores, which ends KVM_RUN. The scheduler's signals
// end it too, and it is entered again.
func enter(cpu int, run []byte) error {
	runtime.LockOSThread() // KVM ties a CPU to the thread that runs it
	defer runtime.UnlockOSThread()
	thread, late, fired := unix.Gettid(), atomic.Bool{}, make(chan struct{})
	timer := time.AfterFunc(runTimeout, func() {
		defer close(fired)
		late.Store(true)
		run[runImmediateExit] = 1 // for a signal just before KVM_RUN
		_ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
	})
	defer func() {
		if !timer.Stop() {
			<-fired
		}
	}()
	for {
		_, err := ioctl(cpu, kvmRun, 0)
		switch {
		case errors.Is(err, unix.EINTR) && late.Load():
			return fmt.Errorf("a guest of four instructions does not end within %s", runTimeout)
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

func ioctl(fd int, request, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func ioctlPointer(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
