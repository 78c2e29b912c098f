//go:build linux && amd64

// Package kvm proves whether /dev/kvm runs guests with the processor's own
// virtualisation. The device's existence proves nothing: on some hosts it is
// there and only emulates, too slowly and too incompletely for a kernel.
//
// It starts no virtual machines for use; that is what the drivers below
// internal/vmm do. Start at [Probe].
package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is where the kernel offers KVM.
const Device = "/dev/kvm"

// Result is what the probe found.
type Result struct {
	Usable   bool
	Emulates bool   // guests run all the same, one instruction after the other; no kernel gets far
	Why      string // one sentence for doctor and the log, whatever the result
}

// program is a real-mode guest: fninit; fldpi; out dx, al; hlt. Hardware runs
// the floating-point instructions and exits at the port write. KVM's emulator
// does not know fldpi and gives up there.
var program = []byte{0xdb, 0xe3, 0xd9, 0xeb, 0xba, portNumber, 0x00, 0xee, 0xf4}

const (
	portNumber  = 0x42
	programBase = 0x1000
	memorySize  = 0x2000 // two pages; the program lies in the second
)

// Probe runs the guest once and reports what happened, in about 3 ms. It
// cannot hang: a signal ends a run that takes longer than a second.
func Probe() Result {
	device, err := os.OpenFile(Device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Result{Why: Device + " does not exist: the processor has no virtualisation, or the kvm module is not loaded"}
	case err != nil:
		return Result{Why: fmt.Sprintf("%s cannot be opened: %v", Device, errors.Unwrap(err))}
	}
	defer func() { _ = device.Close() }()
	exit, err := runGuest(int(device.Fd()))
	if err != nil {
		return Result{Why: fmt.Sprintf("%s is there, but cannot run a guest: %v", Device, err)}
	}
	return judge(exit)
}

// guestExit is the part of struct kvm_run that says why the guest stopped.
type guestExit struct {
	reason   uint32
	suberror uint32 // of an internal error
	port     uint16 // of an I/O exit
}

// Exit reasons of KVM_RUN.
const (
	exitIO            = 2
	exitInternalError = 17

	suberrorEmulation = 1
)

func judge(e guestExit) Result {
	switch {
	case e.reason == exitIO && e.port == portNumber:
		return Result{Usable: true, Why: Device + " runs guests with the processor's virtualisation"}
	case e.reason == exitInternalError && e.suberror == suberrorEmulation:
		return Result{Emulates: true, Why: Device + " is there, but only emulates instructions: this host has no hardware virtualisation to give"}
	default:
		return Result{Why: fmt.Sprintf("%s is there, but a test guest ended with exit reason %d instead of its port write", Device, e.reason)}
	}
}

// runGuest makes a machine of one CPU, runs the program and takes all down.
func runGuest(device int) (guestExit, error) {
	machine, err := ioctl(device, kvmCreateVM, 0)
	if err != nil {
		return guestExit{}, fmt.Errorf("cannot create a machine: %w", err)
	}
	defer func() { _ = unix.Close(machine) }()
	memory, err := unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return guestExit{}, fmt.Errorf("cannot get memory: %w", err)
	}
	defer func() { _ = unix.Munmap(memory) }()
	copy(memory[programBase:], program)
	region := memoryRegion{Size: memorySize, Address: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := ioctlPointer(machine, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return guestExit{}, fmt.Errorf("cannot give it memory: %w", err)
	}
	cpu, err := ioctl(machine, kvmCreateVCPU, 0)
	if err != nil {
		return guestExit{}, fmt.Errorf("cannot create a CPU: %w", err)
	}
	defer func() { _ = unix.Close(cpu) }()
	if err := setRegisters(cpu); err != nil {
		return guestExit{}, fmt.Errorf("cannot set the CPU's registers: %w", err)
	}
	return runCPU(device, cpu)
}

// setRegisters points the CPU at the program, with flat real-mode segments.
func setRegisters(cpu int) error {
	var special specialRegisters
	if _, err := ioctlPointer(cpu, kvmGetSRegs, unsafe.Pointer(&special)); err != nil {
		return err
	}
	special.CS.Base, special.CS.Selector = 0, 0
	if _, err := ioctlPointer(cpu, kvmSetSRegs, unsafe.Pointer(&special)); err != nil {
		return err
	}
	general := generalRegisters{RIP: programBase, RFLAGS: 2} // bit 1 is always set
	_, err := ioctlPointer(cpu, kvmSetRegs, unsafe.Pointer(&general))
	return err
}

func runCPU(device, cpu int) (guestExit, error) {
	size, err := ioctl(device, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return guestExit{}, err
	}
	if size < runHeader {
		return guestExit{}, fmt.Errorf("the kernel's run area has %d bytes only", size)
	}
	run, err := unix.Mmap(cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return guestExit{}, fmt.Errorf("cannot map the CPU's run area: %w", err)
	}
	defer func() { _ = unix.Munmap(run) }()
	if err := enter(cpu, run); err != nil {
		return guestExit{}, fmt.Errorf("cannot run the CPU: %w", err)
	}
	return readExit(run), nil
}
